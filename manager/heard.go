// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	tasktypes "github.com/containerd/containerd/api/types/task"

	"github.com/shimyard/shimyard/bundle"
)

// onExitEvent: the shim told an exit. An event with another pid than ours belongs to an earlier instance of the id; one that comes
// before the pid is known for good is kept until it is.
func (i *Instance) onExitEvent(execID string, e bundle.Exit) {
	e.Told = true
	i.mu.Lock()
	ours := i.hearLocked(execID, e)
	i.mu.Unlock()
	if ours {
		i.saveSoon()
	}
}

// hearLocked takes an exit that was told for the process's, for somebody else's, or keeps it for later. True when it is the process's.
func (i *Instance) hearLocked(execID string, e bundle.Exit) (ours bool) {
	x := i.rec.Execs[execID]
	pid := i.taskPidLocked()
	switch {
	case i.state == launching, execID != "" && x != nil && x.Pid == 0:
		i.keepLocked(execID, e)
	case execID != "":
		if ours = x != nil && x.Pid == e.Pid; ours {
			i.execExitLocked(execID, x, e)
		}
	case e.Pid == 0 || e.Pid == pid:
		i.exitLocked(e)
		ours = true
	case i.pidOpenLocked():
		i.keepLocked("", e)
	case pid == 0: // this shim does not answer with pids
		i.exitLocked(e)
		ours = true
	}
	return ours
}

// pidOpenLocked tells whether the shim may still answer with another pid of init than the one on record: Start may name another one than
// Create did, and its event may be faster than its answer.
func (i *Instance) pidOpenLocked() bool {
	if i.state == restoring || i.changes > 0 || i.rec.Task == nil {
		return true
	}
	st := tasktypes.Status(tasktypes.Status_value[i.rec.Task.Status])
	return st == tasktypes.Status_CREATED || st == tasktypes.Status_UNKNOWN
}

func (i *Instance) keepLocked(execID string, e bundle.Exit) {
	if i.heard == nil {
		i.heard = make(map[process]bundle.Exit)
	}
	i.heard[process{execID, e.Pid}] = e
}

// heardLocked is what was heard of init's exit e before it was known: by its pid or, where the shim does not answer with one, by its words.
func (i *Instance) heardLocked(e bundle.Exit) (bundle.Exit, bool) {
	if e.Pid != 0 {
		h, ok := i.heard[process{"", e.Pid}]
		return h, ok
	}
	for p, h := range i.heard {
		if p.exec == "" && h.Status == e.Status && h.At.Equal(e.At) {
			return h, true
		}
	}
	return bundle.Exit{}, false
}

// execExitLocked records the exit of an exec as it was told; one that an answer told before stays, and was told now.
func (i *Instance) execExitLocked(id string, x *bundle.ExecState, e bundle.Exit) {
	if x.Exit == nil {
		e.Told = false
		i.setExecExitLocked(id, x, e)
	}
	i.toldLocked(x.Exit)
	i.announceLocked()
}

// onDeleteEvent: the shim told that the task is deleted.
func (i *Instance) onDeleteEvent(pid uint32) {
	i.mu.Lock()
	own := i.taskPidLocked()
	_, heard := i.heard[process{"", pid}]
	ours := i.state != launching && (own == 0 || pid == 0 || own == pid || heard && i.pidOpenLocked())
	if ours {
		i.deleteHeard = true
		if i.rec.Task != nil && i.rec.Task.Exit != nil {
			i.rec.Task.Exit.DeleteTold = true
			// Whoever asked for it, perhaps the last daemon while the shim stalled: from here on State is answered from the record, and
			// the next Delete gets the exit.
			i.rec.Deleted = true
		}
	}
	i.mu.Unlock()
	if ours {
		i.saveSoon()
	}
}

func (i *Instance) taskPidLocked() uint32 {
	if i.rec.Task == nil {
		return 0
	}
	return i.rec.Task.Pid
}

func (i *Instance) execPidLocked(id string) uint32 {
	if x := i.rec.Execs[id]; x != nil {
		return x.Pid
	}
	return 0
}
