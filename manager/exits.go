// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"maps"
	"slices"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"

	"github.com/shimyard/shimyard/bundle"
)

// process names one process of a task: init ("") or an exec, by its pid, since ids are used again.
type process struct {
	exec string
	pid  uint32
}

// exitUnknown is the status of a process whose exit nobody saw, as in stock containerd and in CRI.
const exitUnknown = 255

// learnExit records the exit of the init process, once: the first one that is learnt stays, so that State, Wait, Delete and events
// agree. It wakes all Waits.
func (i *Instance) learnExit(e bundle.Exit) {
	i.mu.Lock()
	i.exitLocked(e)
	i.replayLater()
	i.mu.Unlock()
	i.save()
}

// execOf is the exec that has the id now, nil when none is on record: what is asked of it is recorded for it, not for a successor.
func (i *Instance) execOf(id string) *bundle.ExecState {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.rec.Execs[id]
}

// learnExecExit records the exit of an exec that was on record when it was asked for, as an answer told it. Its pid is that on record: 0
// while Start is not answered. It returns the exit that was learnt first.
func (i *Instance) learnExecExit(id string, x *bundle.ExecState, e bundle.Exit) (first *bundle.Exit) {
	i.mu.Lock()
	if x == nil || x != i.rec.Execs[id] {
		i.mu.Unlock()
		e.At = orFirst(e.At, time.Time{})
		return &e
	}
	news := x.Exit == nil
	if news {
		e.Pid = x.Pid
		i.setExecExitLocked(id, x, e)
		i.replayLater()
	}
	e = *x.Exit
	i.mu.Unlock()
	if news {
		i.save()
	}
	return &e
}

func (i *Instance) exitLocked(e bundle.Exit) {
	if i.rec.Task == nil {
		i.rec.Task = &bundle.TaskState{}
	}
	if old := i.rec.Task.Exit; old != nil {
		if e.Told && e.Pid != 0 {
			old.Pid = e.Pid // a Wait was answered while Start had not said yet that its pid is not Create's
		}
		if e.Told {
			i.toldLocked(old)
		}
		i.announceLocked()
		return
	}
	if e.Pid == 0 {
		e.Pid = i.rec.Task.Pid
	}
	if h, ok := i.heardLocked(e); ok {
		e.Pid, e.At, e.Told = h.Pid, h.At, true
	}
	e.At = orFirst(e.At, i.rec.Task.Stopped)
	e.DeleteTold = e.DeleteTold || i.deleteHeard
	told := e.Told
	e.Told = false
	i.rec.Task.Exit = &e
	if told {
		i.toldLocked(&e)
	}
	i.rec.Task.Status = tasktypes.Status_STOPPED.String()
	close(i.exited)
	i.wakeLocked("")
}

// setExecExitLocked records the exit of an exec.
func (i *Instance) setExecExitLocked(id string, x *bundle.ExecState, e bundle.Exit) {
	if e.Pid == 0 {
		e.Pid = x.Pid
	}
	e.At = orFirst(e.At, x.Stopped)
	x.Exit = &e
	i.wakeLocked(id)
}

// wakeLocked makes the Waits for one process look again at what is known. Only those: a Wait call that is ended here goes on in the
// shim, which does not learn of it, and keeps a goroutine there until the process exits.
func (i *Instance) wakeLocked(execID string) {
	for w := range i.waiters {
		if w.execID == execID {
			w.cancel()
		}
	}
	i.announceLocked()
}

// learnDeath records what a dead shim leaves: the exit of init as it was found out, and an unknown exit for each exec that was
// running.
func (i *Instance) learnDeath(e bundle.Exit) {
	i.mu.Lock()
	for id, x := range i.rec.Execs {
		if x.Pid != 0 && x.Exit == nil {
			i.setExecExitLocked(id, x, bundle.Exit{Status: exitUnknown, At: e.At})
		}
	}
	i.exitLocked(e)
	i.wakeLocked("")
	i.mu.Unlock()
	i.save()
}

// exit returns what is known of the exit of init ("") or of an exec; nil when it is not known.
func (i *Instance) exit(execID string) *bundle.Exit {
	i.mu.Lock()
	defer i.mu.Unlock()
	e := i.exitOfLocked(execID)
	if e == nil {
		return nil
	}
	c := *e
	return &c
}

// exitOfLocked is the exit in the record itself.
func (i *Instance) exitOfLocked(execID string) *bundle.Exit {
	if execID == "" {
		if i.rec.Task == nil {
			return nil
		}
		return i.rec.Task.Exit
	}
	if x := i.rec.Execs[execID]; x != nil {
		return x.Exit
	}
	return nil
}

// pid of the init process as last known; 0 means not known.
func (i *Instance) pid() uint32 {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.rec.Task == nil {
		return 0
	}
	return i.rec.Task.Pid
}

// execAdded, execStarted and execDeleted keep the list of execs, which a dead shim's exits are told from. The shim has
// added the exec: an earlier one under the id, which it has deleted for a caller that never came back for the exit, is
// over.
func (i *Instance) execAdded(id string) {
	i.mu.Lock()
	maps.DeleteFunc(i.heard, func(p process, _ bundle.Exit) bool { return p.exec == id })
	if i.rec.Execs == nil {
		i.rec.Execs = make(map[string]*bundle.ExecState)
	}
	i.rec.Execs[id] = &bundle.ExecState{}
	i.mu.Unlock()
}

// knowsExec tells whether a living task has the exec.
func (i *Instance) knowsExec(id string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state.listed() && i.rec.Execs[id] != nil
}

func (i *Instance) execStarted(id string, pid uint32) {
	i.mu.Lock()
	if x := i.rec.Execs[id]; x != nil {
		x.Pid = pid
		if x.Exit != nil && x.Exit.Pid == 0 {
			x.Exit.Pid = pid // a Wait was answered before
		}
		if e, ok := i.heard[process{id, pid}]; ok {
			i.execExitLocked(id, x, e)
		}
		i.replayLater()
	}
	i.mu.Unlock()
	i.save()
}

// execDeleted takes an exec off the record, unless the id is another's by now.
func (i *Instance) execDeleted(id string, x *bundle.ExecState) {
	i.mu.Lock()
	ours := x != nil && i.rec.Execs[id] == x
	if ours {
		delete(i.rec.Execs, id)
		maps.DeleteFunc(i.heard, func(p process, _ bundle.Exit) bool { return p.exec == id })
	}
	i.mu.Unlock()
	if ours {
		i.save()
	}
}

// untold lists the processes whose exit is known and was not told: execs in order of their ids, then init ("").
func (i *Instance) untold() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.untoldLocked()
}

func (i *Instance) untoldLocked() []string {
	var ids []string
	for id, x := range i.rec.Execs {
		if x.Pid != 0 && x.Exit != nil && !x.Exit.Told && !x.Deleted {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	if e := i.exitOfLocked(""); e != nil && !e.Told {
		ids = append(ids, "")
	}
	return ids
}

// note changes what is recorded of a known exit. f runs under the lock.
func (i *Instance) note(execID string, f func(*bundle.Exit)) {
	i.mu.Lock()
	if e := i.exitOfLocked(execID); e != nil {
		f(e)
	}
	i.mu.Unlock()
	i.save()
}

// waiting is a Wait call that is under way.
type waiting struct {
	execID string
	cancel context.CancelFunc
}

// onWake registers the cancel of a Wait call; the Wait calls the returned func when it is through.
func (i *Instance) onWake(execID string, cancel context.CancelFunc) (forget func()) {
	w := &waiting{execID, cancel}
	i.mu.Lock()
	i.waiters[w] = struct{}{}
	i.mu.Unlock()
	return func() {
		i.mu.Lock()
		delete(i.waiters, w)
		i.mu.Unlock()
	}
}

func toExit(e *bundle.Exit) *runtime.Exit {
	return &runtime.Exit{Pid: e.Pid, Status: e.Status, Timestamp: e.At}
}
