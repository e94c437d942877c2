// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/containerd/log"
)

// maxLine is the longest line that is passed on as one; a longer one is cut.
const maxLine = 64 << 10

// OpenLog makes the fifo into which the shims of a bundle log, unless it is
// there, and copies what comes out of it to the daemon's stderr, each line with
// the given fields (id and namespace). It goes on until Close, also while no shim
// has the fifo open, and is to be open before a shim starts: one that opens the
// fifo waits for a reader, and one that writes to it for room.
//
// Lines of logfmt and JSON stay that. Close takes what is in the fifo then, and
// ends the one goroutine. What is at path and is no fifo, or a link, is refused
// (FailedPrecondition). On Windows the log is a named pipe of the shim's, named
// by the fields, and path does not count.
func OpenLog(path string, fields log.Fields) (*Log, error) {
	return openLog(path, fields, os.Stderr)
}

// lineWriter passes lines on, each in one write, with fields added. It is for
// one goroutine.
type lineWriter struct {
	out    io.Writer
	fields lineFields
	other  atomic.Pointer[lineFields] // instead of fields, once set; by any goroutine
	line   []byte                     // what has come of the current line
	ring   logRing
	tap    atomic.Pointer[tap] // nil while no dump is under way
}

// Write takes any part of the stream. It never fails: a shim's log is drained
// also when there is nowhere to put it.
func (w *lineWriter) Write(b []byte) (int, error) {
	n := len(b)
	if t := w.tap.Load(); t != nil {
		t.write(b)
	}
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		part := b
		if end >= 0 {
			part = b[:end]
		}
		if room := maxLine - len(w.line); len(part) > room {
			part, end = part[:room], -1
		}
		w.line = append(w.line, part...)
		b = b[len(part):]
		switch {
		case end >= 0:
			b = b[1:]
			w.flush()
		case len(w.line) == maxLine:
			w.flush()
			if len(b) > 0 && b[0] == '\n' {
				b = b[1:]
			}
		}
	}
	return n, nil
}

// flush passes on what there is of a line.
func (w *lineWriter) flush() {
	fields := w.fields
	if other := w.other.Load(); other != nil {
		fields = *other
	}
	line := escapeControls(bytes.TrimRight(w.line, "\r"))
	if len(line) > 0 {
		w.ring.add(string(line))
		_, _ = w.out.Write(append(fields.addTo(line), '\n'))
	}
	w.line = w.line[:0]
}

// Log is an open log that is being copied. Safe for concurrent use.
type Log struct {
	lines *lineWriter
	stop  func() // makes the goroutine end
	done  chan struct{}
	once  sync.Once
}

// SetFields gives the lines that come from now on other fields: the shim serves another container.
func (c *Log) SetFields(fields log.Fields) {
	other := newLineFields(fields)
	c.lines.other.Store(&other)
}

// Close ends the copying. Idempotent.
func (c *Log) Close() error {
	c.once.Do(c.stop)
	<-c.done
	return nil
}
