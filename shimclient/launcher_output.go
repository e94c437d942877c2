// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/pkg/errors"
)

const (
	// maxStdout bounds a reply.
	maxStdout = 1 << 20
	// maxStderr is how much of the end of stderr goes to the log or an error.
	maxStderr = 4 << 10
)

// capture collects what a child writes to a pipe, up to a bound.
//
// It can be finished while others still hold the pipe open, as a daemon does that
// the child left behind with its own stdout: what is in the pipe then is still
// collected, and what comes later is not waited for. It is read and thrown away for
// as long as there is a writer: a daemon dies of writing to a pipe without a reader.
type capture struct {
	reader, writer *os.File
	max            int
	keepEnd        bool   // beyond max: keep the end, instead of reporting
	tooLong        func() // called once when more than max came, if not keepEnd
	done           chan struct{}

	mu    sync.Mutex // guards what follows
	data  []byte
	over  bool
	taken bool // what comes from now on is thrown away
}

func newCapture(max int, keepEnd bool, tooLong func()) (*capture, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Wrap(err, "cannot make a pipe for the shim's output")
	}
	return &capture{reader: r, writer: w, max: max, keepEnd: keepEnd, tooLong: tooLong, done: make(chan struct{})}, nil
}

// discard closes a capture that was not started.
func (c *capture) discard() {
	c.reader.Close()
	c.writer.Close()
}

// start begins to read, after the child has got its end.
func (c *capture) start() {
	c.writer.Close()
	go c.read()
}

func (c *capture) read() {
	defer c.reader.Close()
	ended := c.collect()
	close(c.done)
	if !ended {
		_, _ = io.Copy(io.Discard, c.reader)
	}
}

// collect reads until the end, which it reports, or until finish is called.
func (c *capture) collect() (ended bool) {
	buf := make([]byte, 16<<10)
	for {
		n, err := c.reader.Read(buf)
		c.add(buf[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return !c.drain(buf)
		}
		if err != nil {
			return true
		}
	}
}

// drain takes what is in the pipe already. It ends though writing may go
// on: no more than a pipe can hold was there when the child exited. It reports
// whether the reader can be read from after it.
func (c *capture) drain(buf []byte) (usable bool) {
	if c.reader.SetReadDeadline(time.Time{}) != nil {
		return false
	}
	for left := maxPipe; left > 0; {
		n := readNow(c.reader, buf)
		if n <= 0 {
			return true
		}
		c.add(buf[:n])
		left -= n
	}
	return true
}

func (c *capture) add(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken || c.over && !c.keepEnd {
		return
	}
	c.data = append(c.data, b...)
	if len(c.data) <= c.max {
		return
	}
	if c.keepEnd {
		c.data = append(c.data[:0], tail(c.data, c.max)...)
		return
	}
	c.over = true
	c.data = c.data[:c.max]
	if c.tooLong != nil {
		c.tooLong()
	}
}

// finish ends the collecting, with all that is in the pipe. The pipe is closed when
// it has no writer any more.
func (c *capture) finish() {
	if c.reader.SetReadDeadline(time.Unix(1, 0)) == nil {
		<-c.done
		return
	}
	// No deadlines on this platform's pipes.
	timer := time.NewTimer(leakTime)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
	}
}

// result is what was collected, and whether there was more than the bound.
func (c *capture) result() (data []byte, truncated bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken = true
	return c.data, c.over
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}
