// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// changing runs a call that gives the task a new status, which is kept if the call succeeds; with UNKNOWN the shim is
// asked for it. While it runs, and after it has failed, the record does not stand for the status.
func (l *ledger) changing(to tasktypes.Status, call func() error) error {
	l.mu.Lock()
	l.status.underway++
	l.status.epoch++
	l.mu.Unlock()
	err := call()
	l.mu.Lock()
	l.status.underway--
	l.status.epoch++
	known := err == nil && to != tasktypes.Status_UNKNOWN
	l.status.unsure = l.status.unsure || !known
	if known && l.rec.Task != nil && l.rec.Task.Exit == nil {
		l.rec.Task.Status = to.String()
	}
	l.mu.Unlock()
	if known {
		l.save()
	}
	return err
}

// task is a copy of what is on record of the init process.
func (l *ledger) task() (t bundle.TaskState, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rec.Task == nil {
		return bundle.TaskState{}, false
	}
	t = *l.rec.Task
	if t.Exit != nil {
		exit := *t.Exit
		t.Exit = &exit
	}
	return t, true
}

// lastKnown is the state as last known, while that can be stood for: with an exit on record, or with a pid that still
// is the process it was.
func (l *ledger) lastKnown() (runtime.State, bool) {
	t, known := l.task()
	if !known {
		return runtime.State{}, false
	}
	s := runtime.State{
		Status: statusOf(tasktypes.Status(tasktypes.Status_value[t.Status])), Pid: t.Pid,
		Stdin: t.Stdin, Stdout: t.Stdout, Stderr: t.Stderr, Terminal: t.Terminal, ExitedAt: t.Stopped,
	}
	if t.Exit != nil {
		s.Status, s.ExitStatus, s.ExitedAt = runtime.StoppedStatus, t.Exit.Status, t.Exit.At
		return s, true
	}
	// A created task may have been started just before its shim fell silent, and CRI deletes one that it takes for
	// never started.
	pid := shimclient.ProcessID{Pid: int(t.Pid), StartTime: t.PidStart}
	return s, s.Status != runtime.CreatedStatus && s.Status != 0 && t.PidStart != 0 && pid.Alive()
}

// wasDeleted tells whether the shim has deleted the task already.
func (l *ledger) wasDeleted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec.Deleted
}

func (l *ledger) markDeleted() {
	l.mu.Lock()
	l.rec.Deleted = true
	l.mu.Unlock()
	l.save()
}

// unspoken tells whether something of the exit and the deletion was not told yet.
func (l *ledger) unspoken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.rec.Task.Exit
	return !e.Told || !e.DeleteTold
}

// firstSeenStopped is when a process was first seen stopped whose exit is not known, which is now unless it is on
// record. What is answered once stays.
func (l *ledger) firstSeenStopped(execID string) time.Time {
	now := time.Now().UTC()
	l.mu.Lock()
	var seen *time.Time
	if x := l.rec.Execs[execID]; x != nil {
		seen = &x.Stopped
	} else if execID == "" && l.rec.Task != nil {
		seen = &l.rec.Task.Stopped
	}
	if seen == nil {
		l.mu.Unlock()
		return now
	}
	if !seen.IsZero() {
		defer l.mu.Unlock()
		return *seen
	}
	*seen = now
	l.mu.Unlock()
	l.save()
	return now
}

// initProcess is the container's init process; zero when it is not known which process of this machine that is.
func (l *ledger) initProcess() shimclient.ProcessID {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.rec.Task; t != nil && t.Exit == nil && t.PidOwned {
		return shimclient.ProcessID{Pid: int(t.Pid), StartTime: t.PidStart}
	}
	return shimclient.ProcessID{}
}

// initMayLive tells whether the process that is known as the container's init runs, ours to signal or not.
func (l *ledger) initMayLive() bool {
	t, known := l.task()
	if !known || t.Exit != nil || t.PidStart == 0 {
		return false
	}
	return shimclient.ProcessID{Pid: int(t.Pid), StartTime: t.PidStart}.Alive()
}

// createdLocked records that the shim has made the task, or the sandbox, and the exit of its init if that was told
// already.
func (l *ledger) createdLocked(t *bundle.TaskState) {
	l.rec.Created = true
	t.Status = tasktypes.Status_CREATED.String()
	l.rec.Task = t
	if e, ok := l.hearing.exits[process{"", t.Pid}]; ok {
		l.exitLocked(e)
	}
}

// answeredLocked records that the shim knows the task, or the sandbox.
func (l *ledger) answeredLocked() { l.rec.Created = true }

// taskLocked is the task's part of the record itself, which is there from now on.
func (l *ledger) taskLocked() *bundle.TaskState {
	if l.rec.Task == nil {
		l.rec.Task = &bundle.TaskState{}
	}
	return l.rec.Task
}

// learnPid keeps the pid of init that the shim told, and what that was found to be good for. True when init's exit
// was told before and is recorded with it, for the caller to save.
func (l *ledger) learnPid(pid uint32, start uint64, owned bool) (exited bool) {
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

// ownsPid tells whether a pid is known as that of the container's init, a process of this machine.
func (l *ledger) ownsPid(pid uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.rec.Task
	return t != nil && t.Pid == pid && t.PidOwned && t.PidStart != 0
}

// statedWithin tells whether the shim has answered State in the time d before now.
func (l *ledger) statedWithin(d time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.status.stated.IsZero() && time.Since(l.status.stated) < d
}

// epoch is to be taken before State is asked, and given to learnState with the answer.
func (l *ledger) epoch() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status.epoch
}

// learnState keeps what State said, and its exit. asked is the epoch of the status when it was asked.
func (l *ledger) learnState(s *taskapi.StateResponse, asked uint64) {
	l.mu.Lock()
	l.status.stated = time.Now()
	t := l.taskLocked()
	news := t.Status != s.Status.String() || t.Stdin != s.Stdin || t.Stdout != s.Stdout || t.Stderr != s.Stderr
	t.Stdin, t.Stdout, t.Stderr, t.Terminal = s.Stdin, s.Stdout, s.Stderr, s.Terminal
	if s.Status == tasktypes.Status_STOPPED && hasTime(s.ExitedAt) {
		// Without a time it is a process that has ended and whose exit the shim has not seen yet.
		l.exitLocked(bundle.Exit{Pid: s.Pid, Status: s.ExitStatus, At: timeOf(s.ExitedAt)})
		l.replayLaterLocked()
	} else if t.Exit == nil && l.status.epoch == asked && l.status.underway == 0 {
		t.Status = s.Status.String()
		l.status.unsure = s.Status == tasktypes.Status_STOPPED
	}
	switch {
	case s.Status != tasktypes.Status_STOPPED:
		t.Stopped = time.Time{}
	case t.Stopped.IsZero():
		t.Stopped = time.Now().UTC()
	}
	l.mu.Unlock()
	if news {
		l.save()
	}
}

// sureLocked tells whether the status on record is what the shim would say: no change of it is under way or has
// failed, and the pid is its init's.
func (l *ledger) sureLocked() bool {
	return l.status.underway == 0 && !l.status.unsure && l.rec.Task != nil && l.rec.Task.PidOwned
}

// statusLocked is the task's status in the words of the Task API, and its exit; "" and nil while nothing is known.
func (l *ledger) statusLocked() (status string, exit *bundle.Exit) {
	if l.rec.Task == nil {
		return "", nil
	}
	return l.rec.Task.Status, copyExit(l.rec.Task.Exit)
}

// memory is where it can be seen whether init was ended for lack of memory, and how many had been there before it.
// Not ok: that is known already, or cannot be known.
func (l *ledger) memory() (cgroup string, kills uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.rec.Task
	if !l.tells || t == nil || t.Cgroup == "" || t.OOM || t.Exit != nil && t.Exit.Status != exitKilled {
		return "", 0, false
	}
	return t.Cgroup, t.OOMKills, true
}

// unplacedLocked is the pid of an init that is known to be the task's own and whose memory cgroup is not on record; 0
// for none.
func (l *ledger) unplacedLocked() uint32 {
	t := l.rec.Task
	if t == nil || t.Exit != nil || !t.PidOwned || t.Cgroup != "" {
		return 0
	}
	return t.Pid
}

// placeMemory records the memory cgroup of init, if that still has the pid.
func (l *ledger) placeMemory(pid uint32, cgroup string, kills uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.rec.Task; t != nil && t.Pid == pid && t.Exit == nil {
		t.Cgroup, t.OOMKills = cgroup, kills
	}
}

// recordOOM records that something in the task, most likely init, was ended for lack of memory.
func (l *ledger) recordOOM() {
	l.mu.Lock()
	if l.rec.Task != nil {
		l.rec.Task.OOM = true
	}
	l.mu.Unlock()
	l.save()
}

// takeOOM tells whether it is to be told that init was ended for lack of memory, and notes that it is; again also if
// this daemon has told it before.
func (l *ledger) takeOOM(again bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.rec.Task
	oom := t != nil && t.OOM && t.Exit != nil && t.Exit.Status == exitKilled
	if l.telling.oomTold && !again {
		return false
	}
	l.telling.oomTold = l.telling.oomTold || oom
	return oom
}
