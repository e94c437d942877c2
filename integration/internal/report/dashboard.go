// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"image"
	"image/color"
	"image/color/palette"
	stddraw "image/draw"
	"image/png"
	"io"
	"math"
	"time"

	"github.com/pkg/errors"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// Grid is where a panel of a dashboard is, in Grafana's units, of which 24 are the width.
type Grid struct{ X, Y, W, H int }

// Graph is a panel of a dashboard with what its queries gave.
type Graph struct {
	Title string
	Unit  string
	Grid  Grid
	// Single panels show the last value of the only series.
	Single bool
	Series []Series
}

// Series is one line of a graph: a point for each moment at which there was a value.
type Series struct {
	Name   string
	At     []time.Time
	Values []float64
}

// unit is how large one of Grafana's is drawn.
const unit = 0.55 * vg.Inch

var lines = []color.Color{
	color.RGBA{R: 0x1f, G: 0x77, B: 0xb4, A: 0xff}, color.RGBA{R: 0xe8, G: 0x7d, B: 0x1a, A: 0xff},
	color.RGBA{R: 0x2c, G: 0xa0, B: 0x2c, A: 0xff},
	color.RGBA{R: 0xd6, G: 0x27, B: 0x28, A: 0xff}, color.RGBA{R: 0x94, G: 0x67, B: 0xbd, A: 0xff},
	color.RGBA{R: 0x8c, G: 0x56, B: 0x4b, A: 0xff},
	color.RGBA{R: 0x17, G: 0xbe, B: 0xcf, A: 0xff}, color.RGBA{R: 0x7f, G: 0x7f, B: 0x7f, A: 0xff},
}

// Dashboard writes a PNG of the panels at their places. Time begins at begin.
func Dashboard(w io.Writer, begin time.Time, graphs []Graph) error {
	var width, height int
	for _, g := range graphs {
		width, height = max(width, g.Grid.X+g.Grid.W), max(height, g.Grid.Y+g.Grid.H)
	}
	total := vg.Length(height) * unit
	img := vgimg.NewWith(vgimg.UseWH(vg.Length(width)*unit, total), vgimg.UseDPI(72))
	canvas := draw.New(img)
	for _, g := range graphs {
		p, err := g.plot(begin)
		if err != nil {
			return errors.Wrapf(err, "cannot draw %s", g.Title)
		}
		const margin = 5
		p.Draw(draw.Canvas{Canvas: canvas.Canvas, Rectangle: vg.Rectangle{
			Min: vg.Point{X: vg.Length(g.Grid.X)*unit + margin, Y: total - vg.Length(g.Grid.Y+g.Grid.H)*unit + margin},
			Max: vg.Point{X: vg.Length(g.Grid.X+g.Grid.W)*unit - margin, Y: total - vg.Length(g.Grid.Y)*unit - margin},
		}})
	}
	// 256 colors are enough for lines, and a third of the bytes.
	small := image.NewPaletted(img.Image().Bounds(), palette.Plan9)
	stddraw.Draw(small, small.Rect, img.Image(), small.Rect.Min, stddraw.Src)
	return errors.Wrap((&png.Encoder{CompressionLevel: png.BestCompression}).Encode(w, small),
		"cannot write the dashboard")
}

func (g *Graph) plot(begin time.Time) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = g.Title
	if g.Single {
		p.HideAxes()
		value := "no data"
		if len(g.Series) > 0 && len(g.Series[0].Values) > 0 {
			value = fmt.Sprintf("%.3g", g.Series[0].Values[len(g.Series[0].Values)-1])
		}
		if g.Unit == "s" {
			value += " s"
		}
		text, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: 0, Y: 0}}, Labels: []string{value}})
		if err != nil {
			return nil, err
		}
		text.TextStyle[0].Font.Size = vg.Points(26)
		text.TextStyle[0].XAlign, text.TextStyle[0].YAlign = draw.XCenter, draw.YCenter
		p.Add(text)
		p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = -1, 1, -1, 1
		return p, nil
	}
	p.X.Label.Text = "seconds"
	p.Y.Label.Text = map[string]string{"s": "seconds", "ops": "a second"}[g.Unit]
	p.Y.Min, p.Y.Max = 0, 0
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.TextStyle.Font.Size = vg.Points(8)
	p.Add(plotter.NewGrid())
	for n, s := range g.Series {
		xys := make(plotter.XYs, 0, len(s.Values))
		for i, v := range s.Values {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				xys = append(xys, plotter.XY{X: s.At[i].Sub(begin).Seconds(), Y: v})
			}
		}
		if len(xys) == 0 {
			continue
		}
		line, err := plotter.NewLine(xys)
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = lines[n%len(lines)], vg.Points(1.2)
		if n >= len(lines) {
			line.Dashes = []vg.Length{vg.Points(3), vg.Points(2)}
		}
		p.Add(line)
		p.Legend.Add(s.Name, line)
	}
	if p.Y.Max <= 0 {
		p.Y.Max = 1
	}
	p.Y.Max *= 1.5 // room for the legend
	return p, nil
}
