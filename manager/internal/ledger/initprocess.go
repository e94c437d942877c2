// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"slices"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// NewTask is a task whose Create was answered with a pid of init, by the shim with a verified pid; a zero one is not
// known. It reads /proc.
func NewTask(pid uint32, shim shimclient.ProcessID, io runtime.IO) *bundle.TaskState {
	start, owned := judge(pid, shim)
	return &bundle.TaskState{
		Pid: pid, PidStart: start, PidOwned: owned,
		Stdin: io.Stdin, Stdout: io.Stdout, Stderr: io.Stderr, Terminal: io.Terminal,
	}
}

// judge says what a pid that a shim told can be used for. The pid may be a guest's or one of another pid namespace,
// and then some process of this machine has the number by chance. Its start time, which makes it the name of one
// process, is kept (start != 0) only for the shim itself (some shims of VMs tell that) and for what descends from it;
// owned, fit to be signalled, are only the latter.
func judge(pid uint32, shim shimclient.ProcessID) (start uint64, owned bool) {
	if pid == 0 || shim == (shimclient.ProcessID{}) {
		return 0, false
	}
	if int(pid) == shim.Pid {
		return shim.StartTime, false
	}
	id, err := shimclient.LookupProcess(int(pid))
	if err != nil || !id.DescendsFrom(shim) {
		return 0, false
	}
	return id.StartTime, true
}

// LearnPid keeps the pid of init that the shim told, whose verified pid is given. What is known for init's own process
// already is not looked at again: each answer to State names it.
func (l *Ledger) LearnPid(pid uint32, shim shimclient.ProcessID) {
	if pid == 0 || l.ownsPid(pid) {
		return
	}
	start, owned := judge(pid, shim)
	exited := l.setPid(pid, start, owned)
	l.PlaceMemory(shim)
	if exited {
		l.Save()
	}
}

// ownsPid tells whether a pid is known as that of the container's init, a process of this machine.
func (l *Ledger) ownsPid(pid uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.rec.Task
	return t != nil && t.Pid == pid && t.PidOwned && t.PidStart != 0
}

// setPid records the pid of init, and its exit if that was told before the pid was. True in the latter case.
func (l *Ledger) setPid(pid uint32, start uint64, owned bool) (exited bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.taskLocked(); t.Exit == nil && (t.Pid != pid || !t.PidOwned && start != 0) {
		t.Pid, t.PidStart, t.PidOwned = pid, start, owned
		t.Cgroup, t.OOMKills = "", 0
	}
	e, heard := l.hearing.exits[process{"", pid}]
	if heard {
		l.exitLocked(e)
	}
	return heard
}

// Pid of init ("") or of an exec as last known; 0 means not known.
func (l *Ledger) Pid(execID string) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if execID == "" {
		return l.taskPidLocked()
	}
	if x := l.rec.Execs[execID]; x != nil {
		return x.Pid
	}
	return 0
}

// Init is the container's init process; zero when it is not known which process of this machine that is, or when it
// has exited.
func (l *Ledger) Init() shimclient.ProcessID {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.rec.Task; t != nil && t.Exit == nil && t.PidOwned {
		return initOf(t)
	}
	return shimclient.ProcessID{}
}

func initOf(t *bundle.TaskState) shimclient.ProcessID {
	return shimclient.ProcessID{Pid: int(t.Pid), StartTime: t.PidStart}
}

// looked is what is on record of the init process when its state is asked for.
type looked struct {
	bundle.TaskState
	held *shimclient.Held // init, if it is held; nil if it is not
	// sure: the status is what the shim would say. No change of it is under way or has failed, and the pid is its init's.
	sure bool
}

// look is a copy of what is on record of the init process; false when nothing is.
func (l *Ledger) look() (t looked, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rec.Task == nil {
		return looked{}, false
	}
	t = looked{*l.rec.Task, l.held, l.status.underway == 0 && !l.status.unsure && l.rec.Task.PidOwned}
	t.Exit = copyExit(t.Exit)
	return t, true
}

// alive tells whether init is known as a process and alive; lives is asked for one that is not held.
func (t *looked) alive(lives func(shimclient.ProcessID) bool) bool {
	id := initOf(&t.TaskState)
	if t.held.Is(id) {
		return t.held.Alive()
	}
	return id.StartTime != 0 && lives(id)
}

// hold tells whether init, whose identity is given, is alive, and holds it for the looks to come.
func (l *Ledger) hold(id shimclient.ProcessID) bool {
	h, err := id.Hold()
	if err != nil {
		return !errdefs.IsNotFound(err) && id.Alive()
	}
	l.mu.Lock()
	if t := l.rec.Task; t != nil && t.Exit == nil && initOf(t) == id && !l.over {
		h, l.held = l.held, h
	}
	l.mu.Unlock()
	h.Close() // the one that was held before, or this one if it is not init any more
	return true
}

// InitGone tells whether the container's init is certainly gone: its exit is on record, or it is known and not there
// any more.
func (l *Ledger) InitGone() bool {
	if l.Exit("") != nil {
		return true
	}
	pid := l.Init()
	return pid != (shimclient.ProcessID{}) && !pid.Alive()
}

// InitMayLive tells whether the process that is known as the container's init runs, ours to signal or not.
func (l *Ledger) InitMayLive() bool {
	t, _ := l.look()
	return t.Exit == nil && t.alive(shimclient.ProcessID.Alive)
}

// Runs tells whether a process is one that the shim has told as the container's, with Create, Start or an event, or
// descends from one.
func (l *Ledger) Runs(id shimclient.ProcessID) bool {
	return slices.ContainsFunc(l.toldPids(), func(pid uint32) bool {
		if pid == 0 || int(pid) == id.Pid {
			return pid != 0
		}
		ancestor, err := shimclient.LookupProcess(int(pid))
		return err == nil && id.DescendsFrom(ancestor)
	})
}

// toldPids are the pids of the container's processes that the shim has told; 0 among them is none.
func (l *Ledger) toldPids() (pids []uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rec.Task != nil {
		pids = append(pids, l.rec.Task.Pid)
	}
	for _, x := range l.rec.Execs {
		pids = append(pids, x.Pid)
	}
	for p := range l.hearing.exits {
		pids = append(pids, p.pid)
	}
	return pids
}

// Foreign is what a bundle of stock containerd tells of its task: init.pid, written by the runc shim.
func Foreign(b *bundle.Bundle) *bundle.TaskState {
	pid, start := foreignPid(b)
	if pid == 0 {
		return &bundle.TaskState{}
	}
	return &bundle.TaskState{Status: tasktypes.Status_RUNNING.String(), Pid: uint32(pid), PidStart: start}
}

// foreignPid judges the init.pid of a bundle that stock containerd left, whose shim may be silent: the process is taken
// for the container's if it began before the file was written. That is good for answering, not for signals.
func foreignPid(b *bundle.Bundle) (pid int, start uint64) {
	pid, written, err := b.InitPid()
	if err != nil {
		return 0, 0
	}
	id, err := shimclient.LookupProcess(pid)
	if err != nil || !id.StartedBefore(written) {
		return pid, 0
	}
	return pid, id.StartTime
}

// A shim tells TaskOOM before the exit, and both are lost when the daemon is away for longer than the shim tries. The
// exit is found out from the shim afterwards; why it came about only the container's cgroup knows, which is there until
// the task is deleted. Clients take the reason from the event alone: CRI its OOMKilled, moby its State.OOMKilled.

// PlaceMemory records where it can be seen whether init is ended for lack of memory, once its pid is known to be its
// own. shim is the verified pid of its shim.
func (l *Ledger) PlaceMemory(shim shimclient.ProcessID) {
	l.mu.Lock()
	var pid uint32 // of an init that is the task's own and whose memory cgroup is not on record
	if t := l.rec.Task; t != nil && t.Exit == nil && t.PidOwned && t.Cgroup == "" {
		pid = t.Pid
	}
	l.mu.Unlock()
	if pid == 0 {
		return
	}
	cgroup, kills := memoryOf(pid, shim)
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.rec.Task; t != nil && t.Pid == pid && t.Exit == nil {
		t.Cgroup, t.OOMKills = cgroup, kills
	}
}

// memoryOf is the memory cgroup of a process, and how many were killed in it so far. Nothing where the process has no
// cgroup other than its shim's: what is killed there may be another's.
func memoryOf(pid uint32, shim shimclient.ProcessID) (cgroup string, kills uint64) {
	cgroup, err := shimclient.MemoryCgroup(int(pid))
	if err != nil {
		return "", 0
	}
	if own, err := shimclient.MemoryCgroup(shim.Pid); err != nil || own == cgroup {
		return "", 0
	}
	if kills, err = shimclient.OOMKills(cgroup); err != nil {
		return "", 0
	}
	return cgroup, kills
}

// NoteOOM looks whether init was ended for lack of memory. It must come before anything that removes the cgroup, and
// means something only when init has ended by itself.
func (l *Ledger) NoteOOM() {
	cgroup, before, ok := l.memory()
	if !ok {
		return
	}
	if kills, err := shimclient.OOMKills(cgroup); err != nil || kills <= before {
		return
	}
	l.mu.Lock()
	if l.rec.Task != nil {
		l.rec.Task.OOM = true
	}
	l.mu.Unlock()
	l.Save()
}

// memory is where it can be seen whether init was ended for lack of memory, and how many had been there before it.
// Not ok: that is known already, or cannot be known.
func (l *Ledger) memory() (cgroup string, kills uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.rec.Task
	if !l.tells || t == nil || t.Cgroup == "" || t.OOM || t.Exit != nil && t.Exit.Status != ExitKilled {
		return "", 0, false
	}
	return t.Cgroup, t.OOMKills, true
}

// TakeOOM tells whether it is to be told that init was ended for lack of memory, and notes that it is; again also if
// this daemon has told it before.
func (l *Ledger) TakeOOM(again bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.rec.Task
	oom := t != nil && t.OOM && t.Exit != nil && t.Exit.Status == ExitKilled
	if l.telling.oomTold && !again {
		return false
	}
	l.telling.oomTold = l.telling.oomTold || oom
	return oom
}
