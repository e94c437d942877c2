// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// maxDump bounds what is kept of a dump: a shim has a stack of some 500 bytes for each goroutine.
const maxDump = 16 << 20

// The lines around the stacks that containerd's shim package writes at SIGUSR1.
const (
	dumpBegin = "=== BEGIN goroutine stack dump ==="
	dumpEnd   = "=== END goroutine stack dump ==="
)

// tap gets a copy of all that a log reads.
type tap struct {
	mu   sync.Mutex
	data []byte
	// whole is closed when the end of a dump has come, with the rest of its line.
	whole chan struct{}
	over  bool
}

func (t *tap) write(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over || len(t.data)+len(b) > maxDump {
		return
	}
	t.data = append(t.data, b...)
	if end := bytes.Index(t.data, []byte(dumpEnd)); end >= 0 && bytes.IndexByte(t.data[end:], '\n') >= 0 {
		t.over = true
		close(t.whole)
	}
}

// DumpStacks runs ask, which makes the shim write the stacks of its goroutines, and returns them as Go prints them,
// however long. ctx bounds the wait; what has come by then is returned. FailedPrecondition if nothing of a dump has,
// and for a second dump beside one.
func (c *Log) DumpStacks(ctx context.Context, ask func() error) (string, error) {
	t := &tap{whole: make(chan struct{})}
	if !c.lines.tap.CompareAndSwap(nil, t) {
		return "", errors.Wrap(errdefs.ErrFailedPrecondition, "a dump of the shim's stacks is under way already")
	}
	defer c.lines.tap.Store(nil)
	if err := ask(); err != nil {
		return "", err
	}
	select {
	case <-t.whole:
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	text := extractDump(string(t.data))
	if text == "" {
		return "", errors.Wrap(errdefs.ErrFailedPrecondition,
			"the shim was asked for its stacks and has written none in time")
	}
	return text, nil
}

// extractDump finds the stacks in what a shim has logged: as they are, or as the message of one line of logfmt or JSON.
func extractDump(logged string) string {
	at := strings.Index(logged, dumpBegin)
	if at < 0 {
		return ""
	}
	line := logged[strings.LastIndexByte(logged[:at], '\n')+1:]
	end := strings.IndexByte(line, '\n')
	if end < 0 {
		end = len(line)
	}
	if text, ok := message(line[:end]); ok {
		return between(text)
	}
	return between(logged[at:])
}

// message is the msg of a line of logfmt or JSON.
func message(line string) (string, bool) {
	var object struct {
		Msg string `json:"msg"`
	}
	if json.Unmarshal([]byte(line), &object) == nil && object.Msg != "" {
		return object.Msg, true
	}
	_, rest, ok := strings.Cut(line, "msg=")
	if !ok {
		return "", false
	}
	quoted, err := strconv.QuotedPrefix(rest)
	if err != nil {
		return "", false
	}
	text, err := strconv.Unquote(quoted)
	return text, err == nil
}

func between(text string) string {
	_, text, _ = strings.Cut(text, dumpBegin)
	text, _, _ = strings.Cut(text, dumpEnd)
	text = strings.Trim(text, "\n")
	if text == "" {
		return ""
	}
	return text + "\n"
}
