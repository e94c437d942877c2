// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/errors"
)

const (
	// writePatience is how long a caller waits in Write for a peer that does
	// not read. ttrpc writes under one lock, whatever the callers' contexts say.
	writePatience = 50 * time.Millisecond

	// maxUnsent bounds what is kept for such a peer, in bytes: some messages of
	// ttrpc's largest size (4 MiB).
	maxUnsent = 16 << 20

	// lastRead is for how long answers are still read after a failed write: a
	// shim that answers and leaves makes writes fail before its answer is read.
	lastRead = time.Second

	// answerGrace is how long calls are left alone after the connection ended:
	// ttrpc forgets the answer that a caller has not picked up yet when it
	// learns of the end.
	answerGrace = 50 * time.Millisecond
)

var (
	errClosedHere  = errors.New("closed on our side")
	errClosedAbove = errors.New("closed by the RPC layer") // what it read made no sense to it
	errUnsent      = errors.Errorf("more than %d bytes unsent", maxUnsent)
)

// wire is a connection that knows when it is lost. It never blocks a writer for
// long: what the peer does not take in writePatience is kept and sent by a
// goroutine that lives as long as there is something to send. A peer that takes
// nothing for the write timeout loses the connection, since a partly sent
// message cannot be taken back.
type wire struct {
	net.Conn
	writeTimeout time.Duration

	// ctx ends when the connection is lost, with the reason as its cause.
	ctx  context.Context
	lose context.CancelCauseFunc

	writeErr atomic.Pointer[error] // the first failed write

	mu sync.Mutex // held while writing to Conn, but not by the drainer
	// While draining, Conn belongs to the drainer, and writers only append.
	draining bool
	unsent   []byte
	sending  int // bytes that the drainer took out of unsent
}

func newWire(conn net.Conn) *wire {
	w := &wire{Conn: conn, writeTimeout: DefaultWriteTimeout}
	w.ctx, w.lose = context.WithCancelCause(context.Background())
	return w
}

// lost returns why the connection is lost, or nil.
func (w *wire) lost() error { return context.Cause(w.ctx) }

// close ends the connection for the given reason, if it has not ended. Who waits
// for it to be lost is told before the calls in flight fail.
func (w *wire) close(reason error) error {
	w.lose(reason)
	return w.Conn.Close()
}

// Close implements net.Conn, for the RPC layer.
func (w *wire) Close() error { return w.close(errClosedAbove) }

// Read implements net.Conn. No reader here ever sets a deadline, so that every
// error is the end.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		reason := err
		if first := w.writeErr.Load(); first != nil {
			reason = *first
		}
		_ = w.close(reason)
		if w.lost() != errClosedHere {
			time.Sleep(answerGrace)
		}
	}
	return n, err
}

// Write implements net.Conn. It takes all of p or fails for good.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.lost(); err != nil {
		return 0, err
	}
	if w.draining {
		return w.keep(p)
	}
	patience := writePatience
	if !writeResumable {
		patience = w.writeTimeout
	}
	n, err := w.send(p, patience)
	if err == nil {
		return n, nil
	}
	if isTimeout(err) && writeResumable {
		w.draining = true
		m, err := w.keep(p[n:])
		if err == nil {
			go w.drain()
		}
		return n + m, err
	}
	w.fail(err)
	return n, err
}

func (w *wire) send(p []byte, patience time.Duration) (int, error) {
	if err := w.Conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return w.Conn.Write(p)
}

// keep leaves p to the drainer. The caller holds mu.
func (w *wire) keep(p []byte) (int, error) {
	if w.sending+len(w.unsent)+len(p) > maxUnsent {
		_ = w.close(errUnsent)
		return 0, errUnsent
	}
	w.unsent = append(w.unsent, p...)
	return len(p), nil
}

// drain sends what is kept until nothing is.
func (w *wire) drain() {
	for {
		w.mu.Lock()
		p := w.unsent
		w.unsent, w.sending = nil, len(p)
		w.draining = len(p) > 0
		w.mu.Unlock()
		if len(p) == 0 {
			return
		}
		for len(p) > 0 {
			n, err := w.send(p, w.writeTimeout)
			// Slow is not stalled: only a peer that took nothing is given up.
			if err != nil && !(isTimeout(err) && n > 0 && writeResumable) {
				w.fail(err)
				return
			}
			p = p[n:]
		}
	}
}

// fail deals with a write that failed for good.
func (w *wire) fail(err error) {
	w.writeErr.CompareAndSwap(nil, &err)
	if isTimeout(err) {
		_ = w.close(errors.Wrap(err, "the shim reads nothing"))
		return
	}
	if err := w.Conn.SetReadDeadline(time.Now().Add(lastRead)); err != nil {
		_ = w.close(err)
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
