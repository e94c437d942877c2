// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

const hvsockPort = 1024

// socket is a listening socket on its way from the helper to the daemon.
type socket struct {
	address string // as it is told
	path    string // of the file; "": abstract
	file    *os.File
}

func (s *socket) remove() {
	if s.file != nil {
		s.file.Close()
	}
	if s.path != "" {
		_ = os.Remove(s.path)
	}
}

// socketName is the file name that containerd's shims give their socket, from which others compute where it is.
func socketName(address, ns, id string, debug bool) string {
	path := filepath.Join(address, ns, id)
	if debug {
		path = filepath.Join(path, "debug")
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(path)))
}

// listenShim makes the socket of a shim. served says that a shim answers there already.
func listenShim(s *Scenario, dir, address, ns, id string, debug bool) (sock *socket, served bool, err error) {
	name := socketName(address, ns, id, debug)
	sock = &socket{path: filepath.Join(dir, name)}
	listenOn := sock.path
	switch s.Socket {
	case Abstract:
		sock.path, sock.address = "", "shimtest/"+name+".sock"
		listenOn = "\x00" + sock.address
	case Bare:
		sock.address = sock.path
	case HVsock:
		sock.address = fmt.Sprintf("hvsock://%s:%d", sock.path, hvsockPort)
	default:
		sock.address = "unix://" + sock.path
	}
	if sock.path != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, false, errors.Wrap(err, "making the socket directory")
		}
	}
	l, err := net.Listen("unix", listenOn)
	if errors.Is(err, unix.EADDRINUSE) {
		if conn, dialErr := net.Dial("unix", listenOn); dialErr == nil {
			conn.Close()
			if s.NoGroup || debug {
				return nil, false, errors.Errorf("socket %s is in use", sock.address)
			}
			return sock, true, nil
		}
		_ = os.Remove(sock.path)
		l, err = net.Listen("unix", listenOn)
	}
	if err != nil {
		return nil, false, errors.Wrap(err, "listening")
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	defer ul.Close()
	if sock.file, err = ul.File(); err != nil {
		return nil, false, errors.Wrap(err, "taking the listening socket")
	}
	return sock, false, nil
}

// trackedListener remembers its connections, so that they can be dropped.
type trackedListener struct {
	net.Listener
	hybrid bool // each connection begins with a CONNECT line

	mu    sync.Mutex // guards what follows
	conns map[*trackedConn]struct{}
	wrote chan struct{} // closed at the next write, if not nil
}

type trackedConn struct {
	net.Conn
	l *trackedListener
	r *bufio.Reader
}

func (c *trackedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *trackedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if c.l.wrote != nil {
		close(c.l.wrote)
		c.l.wrote = nil
	}
	return n, err
}

// nextWrite returns what is closed when something has been written on a connection from now on.
func (l *trackedListener) nextWrite() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wrote == nil {
		l.wrote = make(chan struct{})
	}
	return l.wrote
}

func (c *trackedConn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

func newTrackedListener(l net.Listener, hybrid bool) *trackedListener {
	return &trackedListener{Listener: l, hybrid: hybrid, conns: map[*trackedConn]struct{}{}}
}

func (l *trackedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &trackedConn{Conn: conn, l: l, r: bufio.NewReader(conn)}
		if l.hybrid && !c.handshake() {
			conn.Close()
			continue
		}
		l.mu.Lock()
		l.conns[c] = struct{}{}
		l.mu.Unlock()
		return c, nil
	}
}

func (c *trackedConn) handshake() bool {
	line, err := c.r.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "CONNECT ") {
		return false
	}
	_, err = fmt.Fprintf(c.Conn, "OK %d\n", hvsockPort)
	return err == nil
}

// idle says that there is no connection.
func (l *trackedListener) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns) == 0
}

// allRead says that the other ends have taken all that was written.
func (l *trackedListener) allRead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if c.unread() > 0 {
			return false
		}
	}
	return true
}

// unread is how much the kernel still keeps for the other end, in bytes of its own memory; 0 where it does not say.
func (c *trackedConn) unread() (n int) {
	raw, err := c.Conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n
}

func (l *trackedListener) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		c.Conn.Close()
		delete(l.conns, c)
	}
}
