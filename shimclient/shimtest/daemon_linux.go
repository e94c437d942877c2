// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// daemon is the long-lived process of a shim.
type daemon struct {
	*execution
	listener *trackedListener
	events   *publisher
	log      io.Writer

	mu         sync.Mutex // guards what follows
	last       *Scenario  // what to go by when the file cannot be read
	containers map[string]*container
	sandbox    *sandbox

	quit chan (<-chan struct{}) // takes what is closed when the answer to Shutdown is out
}

func (x *execution) serve() error {
	// Before the trace, which tests wait for: from then on they signal.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	signal.Ignore(unix.SIGPIPE)
	x.trace(Entry{})
	d := &daemon{
		execution: x, last: x.scenario, containers: map[string]*container{}, quit: make(chan (<-chan struct{}), 1),
		log: openLog(),
	}
	inherited := os.NewFile(3, "socket")
	l, err := net.FileListener(inherited)
	inherited.Close() // so that closing the listener ends the listening
	if err != nil {
		return errors.Wrap(err, "taking over the listening socket")
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	d.listener = newTrackedListener(l, x.scenario.Socket == HVsock)
	d.events = newPublisher(d, os.Getenv("TTRPC_ADDRESS"))
	go d.writeLog()
	go d.watchOwner()
	stop, err := d.listen()
	if err != nil {
		return err
	}
	select {
	case <-signals:
	case answered := <-d.quit:
		d.lingerUntil(answered)
		d.hangWhile(func(now *Scenario) bool { return now.Linger })
	}
	d.events.close()
	stop()
	d.removeSockets()
	appendTrace(d.home, Entry{Kind: KindExit, ID: d.id})
	return nil
}

// listen serves the API until the returned function is called.
func (d *daemon) listen() (stop func(), err error) {
	if d.scenario.transport() == "grpc" {
		srv := grpc.NewServer()
		d.registerGRPC(srv)
		go func() { _ = srv.Serve(d.listener) }()
		return func() {
			done := make(chan struct{})
			go func() { srv.GracefulStop(); close(done) }()
			select {
			case <-done:
			case <-time.After(300 * time.Millisecond):
				srv.Stop()
			}
		}, nil
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		return nil, errors.Wrap(err, "making the server")
	}
	d.registerTTRPC(srv)
	go func() { _ = srv.Serve(context.Background(), d.listener) }()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		_ = srv.Shutdown(ctx)
	}, nil
}

// shutdown ends the daemon after the answer to the present call.
func (d *daemon) shutdown() {
	select {
	case d.quit <- d.listener.nextWrite():
	default: // is ending already
	}
}

// lingerUntil lets the answer to Shutdown out. ttrpc's server takes a connection with a call in progress for idle and
// would close it under the answer; its client may drop an answer that is followed by the end of the connection at once.
func (d *daemon) lingerUntil(answered <-chan struct{}) {
	select {
	case <-answered:
	case <-time.After(eventFlush):
	}
	for read, tries := false, 0; !read && tries < 10; tries++ {
		if d.listener.idle() {
			return
		}
		read = d.listener.allRead()
		time.Sleep(5 * time.Millisecond)
	}
}

// removeSockets removes what containerd's pkg/shim removes at its end.
func (d *daemon) removeSockets() {
	if addr, err := os.ReadFile("address"); err == nil {
		_ = os.Remove(strings.TrimPrefix(string(addr), "unix://"))
	}
	dir, err := os.Readlink("s")
	if err != nil {
		dir = d.socketDir()
	}
	if ul, ok := d.listener.Addr().(*net.UnixAddr); ok && filepath.IsAbs(ul.Name) {
		_ = os.Remove(ul.Name)
	}
	for _, debug := range []bool{false, true} {
		_ = os.Remove(filepath.Join(dir, socketName(d.address, d.ns, d.id, debug)))
	}
}

// load reads the scenario as it is now.
func (d *daemon) load() *Scenario {
	s, err := loadScenario(d.home)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.last = s
	}
	return d.last
}

// watchOwner ends the daemon when the test process that installed it is gone, which no cleanup can do then.
func (d *daemon) watchOwner() {
	for !ownerGone(d.home) {
		time.Sleep(ownerInterval)
	}
	os.Exit(1)
}

// openLog opens the bundle's log fifo if it has a reader.
func openLog() io.Writer {
	f, err := os.OpenFile("log", os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return io.Discard
	}
	return f
}

func (d *daemon) writeLog() {
	for _, line := range d.scenario.Log {
		fmt.Fprintln(d.log, line)
	}
	line := strings.Repeat("flood ", 170) + "\n"
	for left := d.scenario.LogFlood; left > 0; left -= len(line) {
		if _, err := io.WriteString(d.log, line[:min(left, len(line))]); err != nil {
			return
		}
	}
}
