// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"github.com/shimyard/shimyard/shimclient"
)

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
