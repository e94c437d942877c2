// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"slices"

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

// +checklocks:l.mu
func (l *Ledger) taskPidLocked() uint32 {
	if l.rec.Task == nil {
		return 0
	}
	return l.rec.Task.Pid
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

// releaseLocked lets init go. Closing its descriptor waits for nothing.
//
// +checklocks:l.mu
func (l *Ledger) releaseLocked() {
	l.held.Close()
	l.held = nil
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
	t, known := l.look()
	return known && t.Exit == nil && t.PidStart != 0 && initOf(&t.TaskState).Alive()
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
