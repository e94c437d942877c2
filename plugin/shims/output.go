// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/pkg/errors"
	"go.yaml.in/yaml/v3"
)

// table writes rows as kubectl does: columns three spaces apart, in capitals above, "<none>" for what there is not.
func table(w io.Writer, header []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	if header != nil {
		rows = append([][]string{header}, rows...)
	}
	for _, row := range rows {
		cells := make([]string, len(row))
		for n, cell := range row {
			cells[n] = orNone(cell)
		}
		if _, err := fmt.Fprintln(t, strings.Join(cells, "\t")); err != nil {
			return errors.WithStack(err)
		}
	}
	return errors.WithStack(t.Flush())
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return escape(s)
}

// escape makes a text one line, and harmless for the terminal that shows it: what a shim or its runtime says gets into
// errors, and an escape sequence in it would be obeyed. What cannot be printed is shown as Go writes it.
func escape(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1: // to some terminals the byte alone is a control character
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
		s = s[n:]
	}
	return b.String()
}

func writeJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return errors.WithStack(err)
	}
	_, err := w.Write(escapeJSON(b.Bytes()))
	return errors.WithStack(err)
}

// escapeJSON escapes the control characters that JSON may have as they are. They can be in strings alone, so that what
// reads the data gets the same.
func escapeJSON(data []byte) []byte {
	var out []byte
	for _, r := range string(data) {
		if r >= 0x7f && r < 0xa0 {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

// writeYAML has the names of the JSON.
func writeYAML(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return errors.WithStack(err)
	}
	var node yaml.Node
	if err := yaml.Unmarshal(escapeJSON(data), &node); err != nil { // JSON is YAML, and keeps its order so
		return errors.WithStack(err)
	}
	blockStyle(&node)
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(&node); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(e.Close())
}

// blockStyle takes the braces and the quotes that came with the JSON away.
func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		blockStyle(c)
	}
}

// age is a span of time in the two largest units, as kubectl shows it.
func age(d time.Duration) string {
	d = max(0, d)
	day := 24 * time.Hour
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 10*time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 3*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 8*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d < 8*day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	}
	return fmt.Sprintf("%dd", d/day)
}

// size is a number of bytes with a binary unit.
func size(n uint64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d", n)
	case n < 1<<20:
		return fmt.Sprintf("%dKi", n>>10)
	case n < 10<<30:
		return fmt.Sprintf("%dMi", n>>20)
	}
	return fmt.Sprintf("%dGi", n>>30)
}

// short cuts an id of the usual 64 hex digits to 13 characters, as critools do.
func short(id string) string {
	const keep = 13
	if len(id) < 64 || strings.Trim(id, "0123456789abcdef") != "" {
		return id
	}
	return id[:keep]
}
