// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"image/color"
	"io"
	"math"
	"strconv"

	"github.com/pkg/errors"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// Panel is one part of the plot: the rows that name it as their Chart.
type Panel struct {
	Chart string
	Title string
	// Log shows powers of ten: for what differs by more than a picture can show.
	Log bool
}

const (
	panelWidth  = 5.6 * vg.Inch
	panelHeight = 3.2 * vg.Inch
	resolution  = 96 // dots an inch
)

var colors = [sides]color.Color{
	color.RGBA{R: 0x9a, G: 0xa5, B: 0xb1, A: 0xff},
	color.RGBA{R: 0x1f, G: 0x77, B: 0xb4, A: 0xff},
	color.RGBA{R: 0xe8, G: 0xb4, B: 0x4a, A: 0xff},
}

// Plot writes a PNG with the panels, two in a line: a bar for each median, a
// line over it between the quartiles. A panel without a row stays out.
func (r *Results) Plot(w io.Writer, panels []Panel) error {
	var plots []*plot.Plot
	for _, p := range panels {
		if rows := r.of(p.Chart); len(rows) > 0 {
			drawn, err := p.draw(rows)
			if err != nil {
				return errors.Wrapf(err, "cannot draw %s", p.Title)
			}
			plots = append(plots, drawn)
		}
	}
	if len(plots) == 0 {
		return errors.New("there is nothing to draw")
	}
	across := min(2, len(plots))
	down := (len(plots) + across - 1) / across
	img := vgimg.NewWith(vgimg.UseWH(panelWidth*vg.Length(across), panelHeight*vg.Length(down)),
		vgimg.UseDPI(resolution))
	tiles := draw.Tiles{Rows: down, Cols: across, PadX: vg.Points(10), PadY: vg.Points(10),
		PadTop: vg.Points(6), PadBottom: vg.Points(6), PadLeft: vg.Points(6), PadRight: vg.Points(6)}
	canvas := draw.New(img)
	for i, p := range plots {
		p.Draw(tiles.At(canvas, i%across, i/across))
	}
	_, err := vgimg.PngCanvas{Canvas: img}.WriteTo(w)
	return errors.Wrap(err, "cannot write the plot")
}

func (r *Results) of(chart string) []*Row {
	var rows []*Row
	for _, row := range r.Rows {
		if row.Chart == chart {
			rows = append(rows, row)
		}
	}
	return rows
}

func (p *Panel) draw(rows []*Row) (*plot.Plot, error) {
	drawn := plot.New()
	drawn.Title.Text, drawn.Y.Label.Text = p.Title, rows[0].Unit
	drawn.Legend.Top, drawn.Legend.Left = true, true
	labels := make([]string, len(rows))
	for i, row := range rows {
		labels[i] = row.Label
	}
	drawn.NominalX(labels...)
	scale, highest := p.scale(rows), 0.0
	const width = 16
	for s := range sides {
		bars, spread := p.side(rows, s, scale)
		if bars == nil {
			continue
		}
		offset := vg.Points(width * (float64(s) - 1))
		chart, err := plotter.NewBarChart(bars, vg.Points(width))
		if err != nil {
			return nil, err
		}
		chart.Color, chart.Offset, chart.LineStyle.Width = colors[s], offset, 0
		drawn.Add(chart, &whiskers{spread: spread, offset: offset})
		drawn.Legend.Add(s.String(), chart)
		for _, q := range spread {
			highest = max(highest, q.high)
		}
	}
	drawn.X.Min, drawn.X.Max = -0.6, float64(len(rows))-0.4 // the outermost groups whole
	drawn.Y.Min, drawn.Y.Max = 0, highest*1.35              // room for the legend
	if p.Log {
		drawn.Y.Tick.Marker = powers{unscaled: func(v float64) float64 { return v + p.floor(rows) }}
	}
	return drawn, nil
}

// side is what is drawn of one side: nothing where it was measured for no row.
func (p *Panel) side(rows []*Row, s Side, scale func(float64) float64) (plotter.Values, []between) {
	var bars plotter.Values
	var spread []between
	any := false
	for i, row := range rows {
		if !row.Has(s) {
			bars = append(bars, 0)
			continue
		}
		any = true
		sum := Summarize(row.Samples[s])
		bars = append(bars, scale(sum.Median))
		spread = append(spread, between{x: float64(i), low: scale(sum.Low), high: scale(sum.High)})
	}
	if !any {
		return nil, nil
	}
	return bars, spread
}

// scale maps a value to the height of its bar.
func (p *Panel) scale(rows []*Row) func(float64) float64 {
	if !p.Log {
		return func(v float64) float64 { return v }
	}
	floor := p.floor(rows)
	return func(v float64) float64 { return max(0, math.Log10(v)-floor) }
}

// floor is the power of ten at which the bars of a logarithmic panel begin.
func (p *Panel) floor(rows []*Row) float64 {
	lowest := math.Inf(1)
	for _, row := range rows {
		for s := range sides {
			if sum := Summarize(row.Samples[s]); sum.N > 0 && sum.Low > 0 {
				lowest = min(lowest, sum.Low)
			}
		}
	}
	if math.IsInf(lowest, 1) {
		return 0
	}
	return math.Ceil(math.Log10(lowest)) - 1 // below the lowest, which is to have a bar
}

// powers are ticks at powers of ten.
type powers struct{ unscaled func(float64) float64 }

func (p powers) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for v := math.Ceil(low); v <= high; v++ {
		ticks = append(ticks, plot.Tick{Value: v, Label: strconv.FormatFloat(math.Pow(10, p.unscaled(v)), 'f', -1, 64)})
	}
	return ticks
}

// between is the spread around the bar at x.
type between struct{ x, low, high float64 }

// whiskers draws spreads as vertical lines: gonum's own error bars have no
// offset and would stand between the bars of a group.
type whiskers struct {
	spread []between
	offset vg.Length
}

// Plot implements plot.Plotter.
func (w *whiskers) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	style := draw.LineStyle{Color: color.Black, Width: vg.Points(1)}
	for _, q := range w.spread {
		at := x(q.x) + w.offset
		c.StrokeLine2(style, at, y(q.low), at, y(q.high))
	}
}
