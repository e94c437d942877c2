// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// ledger is what one instance has to remember beyond the life of the daemon, and what keeps that right: the record as
// the bundle has it, the exits that are known, which of them subscribers were told, the Waits to wake, the changes of
// the status that are under way, and the writing of the record.
//
// It has no lock of its own for what it remembers: the state of the instance and the record must often be judged, or
// changed, in one step (an exit is matched differently before Create is answered; nothing is told once a Delete is
// claimed). So mu is the instance's mutex, and a method whose name ends in Locked is called with it held; all other
// methods take it, and are called without. saving is above mu: it is held over the write of the file, which mu never
// is.
//
// The ledger knows neither the manager nor a shim. What it needs of the outside is in its keeper.
type ledger struct {
	keeper keeper
	tells  bool // exits are for the daemon to tell where the shim does not: a task's, not a sandbox's

	// saving orders the writes of the record file and guards sealed: nothing is written any more.
	saving sync.Mutex
	sealed bool

	// exited is closed when the exit of the init process is known.
	exited chan struct{}

	// mu is the instance's and guards all below.
	mu      *sync.Mutex
	rec     bundle.Record
	waiters map[*waiting]struct{}
	status  statusChanges
	hearing hearing
	telling telling
	writing writing
}

// keeper is what a ledger needs of the instance that it belongs to. The methods whose names end in Locked are called
// with the ledger's lock held; the others without it, except daemonStart and later, which take no lock.
type keeper interface {
	// context is for work that no caller waits for, with the fields that the log names the instance by.
	context() context.Context
	// spawn runs f in a goroutine that the manager waits for, later does so d from now.
	spawn(f func())
	later(d time.Duration, f func())
	// sleep returns false when the manager is closed before d has passed.
	sleep(d time.Duration) bool
	// writeTurn waits until the file of a record may be written behind the follower of events; end makes room for the
	// next.
	writeTurn() (end func())
	// daemonStart is when the manager began.
	daemonStart() time.Time
	// recordBundleLocked is where the record is written; nil while there is no bundle.
	recordBundleLocked() *bundle.Bundle
	// announceLocked wakes all who watch the instance.
	announceLocked()
	// replay tells exits that the shim does not tell, repeat those that may not have been heard, until nothing is due.
	replay()
	repeat()
}

// statusChanges are the calls that give the task another status: an answer to State counts only if none was begun or
// done since it was asked.
type statusChanges struct {
	underway int
	epoch    uint64    // counts them, begun and done
	stated   time.Time // when the shim last answered State
	unsure   bool      // one has failed, or the record is an earlier daemon's: the status is what the shim says next
}

// hearing is what the shim has told before it could be recorded.
type hearing struct {
	exits   map[process]bundle.Exit // heard before it was known whose pid it is
	deleted bool                    // the shim has told the deletion
}

// telling is what is being told to subscribers.
type telling struct {
	replaying bool          // exits that are known are told if the shim does not
	repeating bool          // exits that were told to a young daemon's subscribers are told again
	speakers  int           // what is being told at this moment
	silence   chan struct{} // closed when there are no speakers any more
	oomTold   bool          // this daemon has told that init was ended for lack of memory
	oomDue    time.Time     // when an OOM kill that the shim has told is to be told again; zero when it is not
}

// writing is what is known of the record's file.
type writing struct {
	due    bool // a write behind the follower has not begun yet
	failed bool // the record is not as it should be on disk
}

func newLedger(mu *sync.Mutex, k keeper, tells bool) *ledger {
	return &ledger{keeper: k, tells: tells, mu: mu, exited: make(chan struct{}), waiters: make(map[*waiting]struct{})}
}

// beginLocked starts the record of an instance that there is nothing of yet.
func (l *ledger) beginLocked(runtime string) {
	l.rec = bundle.Record{
		Version: bundle.RecordVersion, Runtime: runtime, Begun: time.Now().UTC(), BootID: shimclient.BootID(),
	}
}

// loadLocked takes over the record that an earlier daemon wrote.
func (l *ledger) loadLocked(rec *bundle.Record) {
	l.rec = *rec
	if rec.Task != nil && rec.Task.Exit != nil {
		close(l.exited)
	}
}

// recordOf is a process as a record names it; nil for none.
func recordOf(id shimclient.ProcessID) *bundle.Proc {
	if (id == shimclient.ProcessID{}) {
		return nil
	}
	return &bundle.Proc{Pid: id.Pid, StartTime: id.StartTime}
}

// procOf is recordOf the other way round.
func procOf(rec *bundle.Proc) shimclient.ProcessID {
	if rec == nil {
		return shimclient.ProcessID{}
	}
	return shimclient.ProcessID{Pid: rec.Pid, StartTime: rec.StartTime}
}

// fromAnotherBoot tells whether the record is from before the machine's last start: no process of then is one of now.
func (l *ledger) fromAnotherBoot() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec.BootID != "" && l.rec.BootID != shimclient.BootID()
}

// wasCreated tells whether the shim has ever made the task, or the sandbox.
func (l *ledger) wasCreated() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec.Created
}

// abandon records that the create has come to nothing. A daemon that dies while it is undone, which may take as long
// as a shim is silent, leaves the bundle for the next one, which must not take what the shim has made after all for a
// task.
func (l *ledger) abandon() error {
	l.mu.Lock()
	l.rec.Abandoned = true
	l.mu.Unlock()
	return l.persist()
}

// abandonedLocked tells whether a create, or a start of a sandbox, has come to nothing.
func (l *ledger) abandonedLocked() bool { return l.rec.Abandoned }

// wasAbandoned: for what was created once, as a sandbox that did not start, it has no meaning.
func (l *ledger) wasAbandoned() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec.Abandoned && !l.rec.Created
}

// markLingering records that all that is left to do is to wait for the end of the shim. A daemon that dies meanwhile
// leaves the bundle for the next one, which must not take the task for a living one.
func (l *ledger) markLingering() {
	l.mu.Lock()
	l.rec.Lingers = true
	l.mu.Unlock()
	l.save()
}

func (l *ledger) wasLingering() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec.Lingers
}

// begunLocked is when the create began; the zero time for what another containerd has left.
func (l *ledger) begunLocked() time.Time { return l.rec.Begun }

// recordLocked is a copy of the whole record, for a bundle that is made with it.
func (l *ledger) recordLocked() *bundle.Record { return cloneRecord(&l.rec) }

// savePause is between two attempts to write a record that could not be written.
const savePause = time.Second

// save writes the record. One that cannot be written does not fail the call that caused it; it is tried again until it
// is written, since an exit that is not on record when the daemon dies may be told a second time, and differently.
func (l *ledger) save() {
	err := l.persist()
	if err == nil {
		return
	}
	l.mu.Lock()
	again := !l.writing.failed
	l.writing.failed = true
	l.mu.Unlock()
	if again {
		log.G(l.keeper.context()).WithError(err).
			Warn("cannot write the instance's record; it is tried again until it succeeds")
		l.keeper.spawn(l.saveLater)
	}
}

// saveSoon is save for the follower, which must not wait for a disk: thousands of events may be behind this one. Of the
// changes that are made before the write begins it takes all.
func (l *ledger) saveSoon() {
	l.mu.Lock()
	due := l.writing.due
	l.writing.due = true
	l.mu.Unlock()
	if due {
		return
	}
	l.keeper.spawn(func() {
		defer l.keeper.writeTurn()()
		l.mu.Lock()
		l.writing.due = false
		l.mu.Unlock()
		l.save()
	})
}

// saveLater tries to write the record until that succeeds, the bundle goes, or the manager is closed.
func (l *ledger) saveLater() {
	for l.keeper.sleep(savePause) {
		if l.persist() == nil {
			l.mu.Lock()
			l.writing.failed = false
			l.mu.Unlock()
			log.G(l.keeper.context()).Info("the instance's record is written")
			return
		}
	}
}

// persist writes the record, unless the bundle is being removed: what is written then could land in the bundle of a
// successor.
func (l *ledger) persist() error {
	l.saving.Lock()
	defer l.saving.Unlock()
	if l.sealed {
		return nil
	}
	l.mu.Lock()
	b, rec := l.keeper.recordBundleLocked(), cloneRecord(&l.rec)
	l.mu.Unlock()
	if b == nil {
		return nil
	}
	return b.WriteRecord(rec)
}

// seal ends the writing of the record.
func (l *ledger) seal() {
	l.saving.Lock()
	l.sealed = true
	l.saving.Unlock()
}

func cloneRecord(r *bundle.Record) *bundle.Record {
	c := *r
	if r.Task != nil {
		t := *r.Task
		t.Exit = copyExit(t.Exit)
		c.Task = &t
	}
	if r.Execs != nil {
		c.Execs = make(map[string]*bundle.ExecState, len(r.Execs))
		for id, x := range r.Execs {
			y := *x
			y.Exit = copyExit(x.Exit)
			c.Execs[id] = &y
		}
	}
	return &c
}
