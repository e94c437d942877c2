// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/log"
)

// logPipeTime is how long the shim's log pipe may take to appear. A container
// that shares its shim with another never has one.
const logPipeTime = 10 * time.Second

// openLog connects to the pipe that the shim serves, once it is there.
func openLog(_ string, fields log.Fields, out io.Writer) (*Log, error) {
	ctx, cancel := context.WithCancel(context.Background())
	w := &lineWriter{out: out, fields: newLineFields(fields)}
	c := &Log{lines: w, stop: cancel, done: make(chan struct{})}
	pipe := fmt.Sprintf(`\\.\pipe\containerd-shim-%v-%v-log`, fields["namespace"], fields["id"])
	go func() {
		defer close(c.done)
		defer cancel()
		copyPipe(ctx, w, pipe)
	}()
	return c, nil
}

func copyPipe(ctx context.Context, w *lineWriter, pipe string) {
	defer w.flush()
	begin := time.Now()
	for {
		conn, err := dialPipe(ctx, pipe)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			_, _ = io.Copy(w, conn)
			stop()
			conn.Close()
			return
		}
		if !isRefused(err) || time.Since(begin) > logPipeTime || !sleep(ctx, 10*time.Millisecond) {
			return
		}
	}
}
