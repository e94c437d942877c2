// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// dialRetry is the pause before an address that may soon accept is tried again.
const dialRetry = 20 * time.Millisecond

// Reach is what an attempt to connect tells about an endpoint.
type Reach int

const (
	// Unknown: neither reached nor refused, such as no permission, a full
	// backlog, or no time. It says nothing about the shim.
	Unknown Reach = iota
	// Reachable: something accepts connections there. The kernel accepts for a
	// stopped process too, so that this does not mean that it answers.
	Reachable
	// Refused: the socket does not exist, has no listener, or one that is
	// no shim (errForeignPeer). Sockets get removed and abstract ones are per network namespace, so that this alone
	// does not prove that the shim is dead.
	Refused
)

func (r Reach) String() string {
	switch r {
	case Reachable:
		return "reachable"
	case Refused:
		return "refused"
	default:
		return "unknown"
	}
}

// Probe connects to the endpoint once, says nothing, and disconnects.
func (e Endpoint) Probe(ctx context.Context) Reach {
	t, err := e.target()
	if err != nil {
		return Unknown
	}
	conn, err := t.connect(ctx)
	switch {
	case err == nil:
		_ = conn.Close()
		return Reachable
	case isRefused(err):
		return Refused
	default:
		return Unknown
	}
}

// isRefused reports whether a connect failed because no shim listens.
func isRefused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, errWSARefused) || errors.Is(err, fs.ErrNotExist) ||
		errors.Is(err, errForeignPeer)
}

// dial connects to the endpoint. It tries again while ctx lasts where the
// address exists and is merely not ready. The error is of class Unavailable, or
// of ctx's if that ended, and wraps what the last attempt met.
func (e Endpoint) dial(ctx context.Context) (net.Conn, error) {
	t, err := e.target()
	if err != nil {
		return nil, err
	}
	for begin := time.Now(); ; {
		conn, err := t.connect(ctx)
		if err == nil {
			return conn, nil
		}
		if t.notReady(err, time.Since(begin)) && sleep(ctx, dialRetry) {
			continue
		}
		return nil, errors.Wrapf(&classed{dialClass(ctx, err), err}, "connecting to shim at %q", e)
	}
}

// dialClass returns the class of a failed attempt's error. The net package may
// notice a deadline before the context does.
func dialClass(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case errors.Is(err, errdefs.ErrNotImplemented):
		return errdefs.ErrNotImplemented
	default:
		return errdefs.ErrUnavailable
	}
}

// sleep waits for d and reports whether ctx lasted that long.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// connect makes one attempt.
func (t target) connect(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	switch t.kind {
	case kindVsock:
		return dialVsock(ctx, t.cid, t.port)
	case kindHybridVsock:
		return dialHybridVsock(ctx, t.path, t.port)
	case kindPipe:
		return dialPipe(ctx, t.path)
	default:
		return dialShim(ctx, t.unixPath())
	}
}

// errForeignPeer is returned for a unix socket on which another user's process
// listens: a shim runs as our user, or as root. An abstract name, and the place of a
// file that is gone, can be taken by any user.
var errForeignPeer = errors.New("the listener is neither our user's nor root's")

// listener is the process that began to listen on a unix socket, as the kernel keeps it for the socket's life. That
// may be a helper which is gone.
type listener struct {
	uid uint32
	pid int
}

// dialShim connects to a unix socket of a shim. The process that the kernel names as
// the peer is the one that has made the socket, which may be a helper that is gone:
// its user counts, its pid proves nothing.
func dialShim(ctx context.Context, path string) (net.Conn, error) {
	conn, err := dialUnix(ctx, path)
	if err != nil {
		return nil, err
	}
	l, err := listenerOf(conn)
	if err == nil && l != nil && l.uid != 0 && int64(l.uid) != int64(os.Geteuid()) {
		err = errors.Wrapf(errForeignPeer, "uid %d", l.uid)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// notReady reports whether an attempt that failed so is worth another one,
// after trying for so long already.
func (t target) notReady(err error, tried time.Duration) bool {
	switch t.kind {
	case kindUnix:
		// The backlog is full: the shim is slow or stopped, but there.
		return errors.Is(err, syscall.EAGAIN)
	case kindHybridVsock:
		return errors.Is(err, errGuestNotReady) || errors.Is(err, syscall.EAGAIN)
	case kindPipe:
		// A shim may give its address before the pipe exists, for seconds on a
		// busy machine (containerd's issue 2519); one that is to be found again
		// has no use for longer.
		return isRefused(err) && tried < 5*time.Second
	default:
		return false
	}
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}
