// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"sync"
	"time"
)

const (
	// ringLines and ringBytes bound what is kept of a log. A shim that fills both costs 64 KiB, one that logs nothing
	// costs nothing.
	ringLines = 256
	ringBytes = 64 << 10
)

// LogLine is one line that a shim has logged.
type LogLine struct {
	// Number counts the lines of one Log from 1 on.
	Number uint64
	At     time.Time
	// Text is the line without its end, with control characters escaped.
	Text string
}

// logRing keeps the last lines. The zero value is ready. Safe for concurrent use.
type logRing struct {
	mu    sync.Mutex
	lines []LogLine
	bytes int
	last  uint64
}

func (r *logRing) add(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	r.lines = append(r.lines, LogLine{Number: r.last, At: time.Now().UTC(), Text: text})
	r.bytes += len(text)
	drop := 0
	for len(r.lines)-drop > ringLines || r.bytes > ringBytes && len(r.lines)-drop > 1 {
		r.bytes -= len(r.lines[drop].Text)
		drop++
	}
	r.lines = append(r.lines[:0], r.lines[drop:]...)
}

// after returns the lines that came after the one of that number, and the number of the last one that ever came.
func (r *logRing) after(number uint64) (lines []LogLine, last uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lines {
		if l.Number > number {
			lines = append(lines, l)
		}
	}
	return lines, r.last
}

// Lines returns the lines kept of those that came after the one of that number, oldest first, and the number of the
// last one that ever came.
func (c *Log) Lines(after uint64) (lines []LogLine, last uint64) { return c.lines.ring.after(after) }
