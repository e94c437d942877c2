// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package daemon runs a containerd as a child process, in a directory of its
// own, and checks that nothing of it and its containers is left.
//
// It owns one short-named directory (unix socket paths are short), the process
// and, where asked for, a mount namespace. Everything that a test makes has
// that directory's name in its arguments, its working directory or its cgroup,
// which is how the leftovers are found. Processes are signalled by pid only.
// A Daemon is not safe for concurrent use, except for its paths and Client.
package daemon

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// Patience is how long anything may take before a test gives up on it. It is
// generous, because it only ends what would hang: no test asserts a time.
const Patience = 90 * time.Second

// Daemon is a containerd with its directory. Its process may be stopped,
// killed, and started again, also from another binary.
type Daemon struct {
	// Dir holds everything: root, state, sockets, config, log, runc's state.
	Dir string

	tb     testing.TB
	opts   Options
	ns     *runNamespace // nil: the test's own mount namespace
	proc   *process      // nil: not running
	client *client.Client
	base   *usage

	emptyCgroups bool // are no leftovers
}

// process is one run of the daemon.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has been reaped; err is set before
	err  error
}

// Start makes the directory and starts the daemon; it is stopped, and the
// leftovers are checked, when the test ends.
func Start(tb testing.TB, o Options) *Daemon {
	tb.Helper()
	parent := o.Parent
	if parent == "" {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "sy-")
	require.NoError(tb, err)
	d := &Daemon{Dir: dir, tb: tb, opts: o}
	tb.Cleanup(d.end)
	for _, sub := range []string{"root", "state", "runc", "fifo", "tmp", "s"} {
		require.NoError(tb, os.Mkdir(filepath.Join(dir, sub), 0o711))
	}
	// A container with a user namespace reaches its rootfs through here.
	require.NoError(tb, os.Chmod(dir, 0o711))
	if o.PrivateRun {
		d.ns, err = newRunNamespace()
		require.NoError(tb, err)
	}
	d.Run()
	return d
}

// Run starts the process and waits until it serves.
func (d *Daemon) Run() {
	d.tb.Helper()
	require.NoError(d.tb, d.run())
}

func (d *Daemon) run() error {
	if err := d.writeConfig(); err != nil {
		return err
	}
	log, err := os.OpenFile(d.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return errors.Wrap(err, "cannot open the daemon's log")
	}
	defer log.Close()
	fmt.Fprintf(log, "--- %s\n", d.opts.Binary)
	level := d.opts.LogLevel
	if level == "" {
		level = "info"
	}
	cmd := exec.Command(d.opts.Binary, "--config", d.configPath(), "--log-level", level)
	cmd.Dir, cmd.Stdout, cmd.Stderr = d.Dir, log, log
	path := append(append([]string{}, d.opts.Path...), os.Getenv("PATH"))
	cmd.Env = append(os.Environ(), "PATH="+strings.Join(path, ":"), "TMPDIR="+filepath.Join(d.Dir, "tmp"))
	cmd.Env = append(cmd.Env, d.opts.Env...)
	if d.ns != nil {
		d.ns.enter(cmd)
	}
	if err := cmd.Start(); err != nil {
		return errors.Wrap(err, "cannot start the daemon")
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	d.proc = p
	return d.ready(p)
}

// ready waits until the daemon says that it serves.
func (d *Daemon) ready(p *process) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	go func() { // the client waits for a daemon that is no more
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		if c := d.dialled(ctx); c != nil {
			d.client = c
			return nil
		}
		select {
		case <-p.done:
			d.proc = nil
			return errors.Errorf("the daemon ended instead of serving: %v", p.err)
		case <-ctx.Done():
			select {
			case <-p.done:
				continue
			default:
			}
			return errors.New("the daemon does not serve")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// dialled is a client of a daemon that serves, nil while it does not. The client
// alone would find out too late: it pauses for a second when it is refused.
func (d *Daemon) dialled(ctx context.Context) *client.Client {
	conn, err := net.Dial("unix", d.Address())
	if err != nil {
		return nil
	}
	conn.Close()
	c, err := client.New(d.Address(), client.WithTimeout(Patience))
	if err != nil {
		return nil
	}
	if ok, err := c.IsServing(ctx); err == nil && ok {
		return c
	}
	c.Close()
	return nil
}

// Stop ends the daemon as an init system would.
func (d *Daemon) Stop() { d.tb.Helper(); d.signal(syscall.SIGTERM) }

// Kill ends the daemon as a crash would.
func (d *Daemon) Kill() { d.tb.Helper(); d.signal(syscall.SIGKILL) }

// Signal sends sig to the daemon's process and does not wait.
func (d *Daemon) Signal(sig syscall.Signal) {
	d.tb.Helper()
	require.NoError(d.tb, d.proc.cmd.Process.Signal(sig))
}

func (d *Daemon) signal(sig syscall.Signal) {
	d.tb.Helper()
	d.closeClient()
	if d.proc == nil {
		return
	}
	p := d.proc
	d.proc = nil
	_ = p.cmd.Process.Signal(sig) // it may be gone; the wait below tells
	select {
	case <-p.done:
	case <-time.After(Patience):
		_ = p.cmd.Process.Kill()
		<-p.done
		d.tb.Errorf("the daemon did not end on %v within %v", sig, Patience)
	}
}

// Swap makes binary the one that the next Run starts.
func (d *Daemon) Swap(binary string) { d.opts.Binary = binary }

// Reconfigure changes the options for the next Run.
func (d *Daemon) Reconfigure(change func(*Options)) { change(&d.opts) }

// Pid is the daemon's process id.
func (d *Daemon) Pid() int { return d.proc.cmd.Process.Pid }

// Client is the connection that Run made; a new one after each Run.
func (d *Daemon) Client() *client.Client { return d.client }

// Dial makes a further connection; the caller closes it.
func (d *Daemon) Dial() *client.Client {
	d.tb.Helper()
	c, err := client.New(d.Address(), client.WithTimeout(Patience))
	require.NoError(d.tb, err)
	return c
}

func (d *Daemon) closeClient() {
	if d.client != nil {
		d.client.Close()
		d.client = nil
	}
}

// Address is that of the daemon's gRPC socket.
func (d *Daemon) Address() string { return filepath.Join(d.Dir, "c.sock") }

// RuncRoot is where runc keeps its state.
func (d *Daemon) RuncRoot() string { return filepath.Join(d.Dir, "runc") }

// FIFODir is where clients make the fifos of their containers.
func (d *Daemon) FIFODir() string { return filepath.Join(d.Dir, "fifo") }

// SocketDir is the socket_dir of the config.
func (d *Daemon) SocketDir() string { return filepath.Join(d.Dir, "s") }

// Bundle is the directory of one task.
func (d *Daemon) Bundle(ns, id string) string {
	return filepath.Join(d.Dir, "state", taskPlugin, ns, id)
}

// Cgroup is the parent of the cgroups of all containers, an absolute path in
// each hierarchy.
func (d *Daemon) Cgroup() string { return "/" + filepath.Base(d.Dir) }

// Log is what the daemon, over all its runs, has written.
func (d *Daemon) Log() string {
	data, err := os.ReadFile(d.logPath())
	require.NoError(d.tb, err)
	return string(data)
}

func (d *Daemon) logPath() string { return filepath.Join(d.Dir, "log") }

const (
	taskPlugin    = "io.containerd.runtime.v2.task"
	sandboxPlugin = "io.containerd.sandbox.controller.v1.shim"
)

// end checks for leftovers, stops the daemon and removes what there is, so that
// a failed test does not disturb the next.
func (d *Daemon) end() {
	left := d.Leftovers()
	for _, l := range left {
		d.tb.Errorf("left behind: %s", l)
	}
	if d.proc != nil {
		d.signal(syscall.SIGTERM)
	}
	if d.tb.Failed() {
		d.tb.Logf("daemon's log:\n%s", d.shortLog())
	}
	for _, err := range d.sweep() {
		d.tb.Errorf("cleaning up: %v", err)
	}
}

// shortLog is the end of the log without what each start says of each plugin.
func (d *Daemon) shortLog() string {
	var lines []string
	for _, line := range strings.Split(d.Log(), "\n") {
		if !strings.Contains(line, "loading plugin") || strings.Contains(line, "failed") {
			lines = append(lines, line)
		}
	}
	const keep = 150
	if len(lines) > keep {
		lines = lines[len(lines)-keep:]
	}
	return strings.Join(lines, "\n")
}

// RunToEnd runs a daemon that should end by itself, and returns what it wrote.
// One that serves instead is ended, and that is no error.
func RunToEnd(binary string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	var out strings.Builder
	cmd.Stdout = &watcher{out: &out, word: "containerd successfully booted",
		then: func() { _ = cmd.Process.Signal(syscall.SIGTERM) }}
	cmd.Stderr = cmd.Stdout
	err := cmd.Run()
	return out.String(), err
}

// watcher collects what is written and acts once on a word.
type watcher struct {
	out  *strings.Builder
	word string
	then func()
}

func (w *watcher) Write(p []byte) (int, error) {
	w.out.Write(p)
	if w.then != nil && strings.Contains(w.out.String(), w.word) {
		w.then()
		w.then = nil
	}
	return len(p), nil
}
