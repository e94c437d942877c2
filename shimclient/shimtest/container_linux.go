// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// process is the init or an exec of a container: a real child.
type process struct {
	id   string // of the exec; "": init
	args []string
	io   stdio

	// announce is held from before a step to after its event is queued, so that the exit's event comes later.
	announce sync.Mutex

	mu       sync.Mutex // guards what follows
	status   tasktypes.Status
	pid      int
	cmd      *exec.Cmd
	release  *os.File // a byte on it lets the child run
	stdin    io.Closer
	exitCode uint32
	exitedAt time.Time

	exited chan struct{} // closed when the exit is known and its event queued
}

type stdio struct {
	stdin, stdout, stderr string
	terminal              bool
}

// container is one task.
type container struct {
	id, bundle string
	checkpoint string
	init       *process

	mu     sync.Mutex // guards what follows, and is held while an exec is being started
	execs  map[string]*process
	ending bool // the init is gone: no exec may start any more
}

func newProcess(id string, args []string, io stdio) *process {
	return &process{id: id, args: args, io: io, status: tasktypes.Status_CREATED, exited: make(chan struct{})}
}

// initArgs are what the container runs: process.args of its config.json, else what the scenario says.
func (d *daemon) initArgs(bundle string) []string {
	var spec struct {
		Process struct {
			Args []string `json:"args"`
		} `json:"process"`
	}
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err == nil && json.Unmarshal(data, &spec) == nil && len(spec.Process.Args) > 0 {
		return spec.Process.Args
	}
	if s := d.load(); s.Init != nil {
		return s.Init
	}
	return []string{"sleep"}
}

// spawn makes the child, which waits until it is released. It returns when the child is ready for signals.
func (d *daemon) spawn(p *process, id, bundle string, onExit func(status int, at time.Time)) error {
	if program := d.load().Program; p.id == "" && len(program) > 0 {
		return p.spawnProgram(program, bundle, onExit)
	}
	goR, goW, err := os.Pipe()
	if err != nil {
		return errors.Wrap(err, "making the release pipe")
	}
	defer goR.Close()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		goW.Close()
		return errors.Wrap(err, "making the ready pipe")
	}
	defer readyR.Close()
	cmd := exec.Command(filepath.Join(d.home, guestName), p.args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GORACE=" + os.Getenv("GORACE"), homeEnv + "=" + d.home,
		guestIDEnv + "=" + id, guestBundleEnv + "=" + bundle}
	if d.load().InheritEnv {
		cmd.Env = append(os.Environ(), cmd.Env...)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles = []*os.File{goR, readyW}
	closeStdio, err := p.attach(cmd)
	if err == nil {
		err = cmd.Start()
	}
	closeStdio()
	readyW.Close()
	if err != nil {
		goW.Close()
		return errors.Wrapf(err, "starting %q", p.args)
	}
	_, _ = readyR.Read(make([]byte, 1)) // EOF if it died at once, which is for the reaper to tell
	p.watch(cmd, goW, onExit)
	return nil
}

// watch makes cmd, which runs, the child of the process.
func (p *process) watch(cmd *exec.Cmd, release *os.File, onExit func(status int, at time.Time)) {
	p.mu.Lock()
	p.cmd, p.pid, p.release = cmd, cmd.Process.Pid, release
	p.mu.Unlock()
	go func() {
		_ = cmd.Wait()
		at := time.Now()
		onExit(exitStatus(cmd.ProcessState.Sys().(syscall.WaitStatus)), at)
	}()
}

// spawnProgram makes a child that is no guest: it waits for no release, and begins at once.
func (p *process) spawnProgram(program []string, bundle string, onExit func(status int, at time.Time)) error {
	release, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return errors.Wrap(err, "opening what releases nothing")
	}
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Dir, cmd.Env = bundle, []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		release.Close()
		return errors.Wrapf(err, "starting %q", program)
	}
	p.watch(cmd, release, onExit)
	return nil
}

func exitStatus(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// attach connects a child with the fifos or files that the caller named, and returns what closes our ends of them.
func (p *process) attach(cmd *exec.Cmd) (done func(), err error) {
	var opened []*os.File
	done = func() {
		for _, f := range opened {
			f.Close()
		}
	}
	open := func(path string) *os.File {
		if !filepath.IsAbs(path) {
			return nil
		}
		f, openErr := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
		if openErr != nil {
			err = errors.Wrapf(openErr, "opening %s", path)
			return nil
		}
		_ = unix.SetNonblock(int(f.Fd()), false) // for the child
		opened = append(opened, f)
		return f
	}
	if f := open(p.io.stdout); f != nil {
		cmd.Stdout = f
	}
	if f := open(p.io.stderr); f != nil {
		cmd.Stderr = f
	}
	if filepath.IsAbs(p.io.stdin) && err == nil {
		err = p.attachStdin(cmd)
	}
	return done, err
}

// attachStdin copies the fifo to the child, until CloseIO or the child's end.
func (p *process) attachStdin(cmd *exec.Cmd) error {
	f, err := os.OpenFile(p.io.stdin, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return errors.Wrapf(err, "opening %s", p.io.stdin)
	}
	r, w, err := os.Pipe()
	if err != nil {
		f.Close()
		return errors.Wrap(err, "making the stdin pipe")
	}
	cmd.Stdin = r
	p.mu.Lock()
	p.stdin = f
	p.mu.Unlock()
	go func() {
		defer w.Close()
		_, _ = io.Copy(w, f)
	}()
	go func() {
		<-p.exited
		f.Close()
		r.Close()
	}()
	return nil
}

// run lets the child go.
func (p *process) run() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status != tasktypes.Status_CREATED || p.release == nil {
		return errors.Errorf("cannot start a process that is %s", p.status)
	}
	if _, err := p.release.Write([]byte{1}); err != nil {
		return errors.Wrap(err, "releasing the child")
	}
	p.release.Close()
	p.release = nil
	p.status = tasktypes.Status_RUNNING
	return nil
}

// finish records the exit.
func (p *process) finish(status int, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status, p.exitCode, p.exitedAt = tasktypes.Status_STOPPED, uint32(status), at
	if p.release != nil {
		p.release.Close()
		p.release = nil
	}
}

func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status == tasktypes.Status_STOPPED {
		return errProcessDone
	}
	if p.cmd == nil {
		return errNotStarted
	}
	// A closed pidfd or a reaped child both mean that it has just ended.
	if err := p.cmd.Process.Signal(sig); err != nil {
		return errProcessDone
	}
	return nil
}

func (p *process) snapshot() (status tasktypes.Status, pid, code uint32, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status, uint32(p.pid), p.exitCode, p.exitedAt
}

func (c *container) process(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[execID]; p != nil {
		return p, nil
	}
	return nil, errNoProcess(execID)
}

// killExecs ends all execs and waits until their exits are published.
func (c *container) killExecs() {
	c.mu.Lock()
	c.ending = true
	var running []*process
	for _, p := range c.execs {
		if _, pid, _, _ := p.snapshot(); pid != 0 {
			running = append(running, p)
		}
	}
	c.mu.Unlock()
	for _, p := range running {
		_ = p.signal(syscall.SIGKILL)
		<-p.exited
	}
}

// writeInitPid leaves the pid where runc shims leave it.
func writeInitPid(bundle string, pid uint32) error {
	path := filepath.Join(bundle, "init.pid")
	if err := os.WriteFile(path+".tmp", fmt.Append(nil, pid), 0o644); err != nil {
		return errors.Wrap(err, "writing init.pid")
	}
	return errors.Wrap(os.Rename(path+".tmp", path), "writing init.pid")
}

// exitRecord is exit.json of the runc shim.
type exitRecord struct {
	Timestamp time.Time
	Pid       int
	Status    int
}

func (d *daemon) writeExit(c *container, pid, status int, at time.Time) {
	if s := d.load(); s.NoExitFile || s.generation() != Bootstrap {
		return
	}
	data, _ := json.Marshal(exitRecord{Timestamp: at, Pid: pid, Status: status})
	path := filepath.Join(c.bundle, "exit.json")
	if os.WriteFile(path+".tmp", data, 0o600) == nil {
		_ = os.Rename(path+".tmp", path)
	}
}

func stdioOf(r *taskapi.CreateTaskRequest) stdio {
	return stdio{r.Stdin, r.Stdout, r.Stderr, r.Terminal}
}
