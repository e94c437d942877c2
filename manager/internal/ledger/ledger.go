// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"reflect"
	"sync"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sync/semaphore"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// Ledger is what is remembered of one instance. Safe for concurrent use.
type Ledger struct {
	desk   *Desk
	keeper Keeper
	tells  bool // exits are for the daemon to tell where the shim does not: a task's, not a sandbox's

	// exited is closed when the exit of the init process is known.
	exited chan struct{}

	// saving orders the writes of the record's file. It is above mu, and held over the write, which mu never is.
	saving sync.Mutex
	// +checklocks:saving
	sealed bool // nothing is written any more
	// +checklocks:saving
	written written

	// mu guards all below. No other lock is taken under it.
	mu sync.Mutex
	// +checklocks:mu
	rec bundle.Record
	// +checklocks:mu
	news chan struct{} // closed and replaced at every change that a caller may wait for
	// +checklocks:mu
	waiters map[*waiting]struct{}
	// +checklocks:mu
	status statusChanges
	// +checklocks:mu
	hearing hearing
	// +checklocks:mu
	telling telling
	// +checklocks:mu
	writing writing
	// +checklocks:mu
	held *shimclient.Held // init, if its state is asked for often
	// +checklocks:mu
	over bool // sealed: init is not held any more
}

// Keeper is the instance that a ledger belongs to. Its methods are called with no lock of the ledger's held but saving.
type Keeper interface {
	// Context is for work that no caller waits for, with the fields that the log names the instance by.
	Context() context.Context
	// Bundle is where the record is written; nil while there is none.
	Bundle() *bundle.Bundle
}

// statusChanges are the calls that give the task another status: an answer to State counts only if none was begun or
// done since it was asked.
type statusChanges struct {
	underway int
	epoch    uint64    // counts them, begun and done
	stated   time.Time // when the shim last said the status: it answered State, or a call that gives it a new one
	unsure   bool      // one has failed, or the record is an earlier daemon's: the status is what the shim says next
}

// hearing is what the shim has told before it could be recorded.
type hearing struct {
	exits   map[process]bundle.Exit // heard before it was known whose pid it is
	deleted bool                    // the shim has told the deletion
}

// process names one process of a task: init ("") or an exec, by its pid, since ids are used again.
type process struct {
	exec string
	pid  uint32
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

// waiting is a Wait call that is under way.
type waiting struct {
	execID string
	cancel context.CancelFunc
}

// written is what the ledger has written last, and where; zero where that is not known.
type written struct {
	in  *bundle.Bundle
	rec *bundle.Record
}

// writing is what is known of the record's file.
type writing struct {
	due    bool // a write behind the follower has not begun yet
	failed bool // the record is not as it should be on disk
}

// Desk is what the ledgers of one daemon share.
type Desk struct {
	// Started tells when the daemon began.
	Started func() time.Time
	// Spawn runs f in a goroutine that the daemon's end waits for.
	Spawn func(f func())
	// Sleep returns false when the daemon ends before d has passed.
	Sleep func(d time.Duration) bool
	// Replay tells exits that the shim does not tell, until [Ledger.ReplayDue] says that nothing is due.
	Replay func(Keeper)
	// Repeat tells exits again that may not have been heard, until [Ledger.RepeatDue] says that nothing is due.
	Repeat func(Keeper)
	// turns bounds how many records are written at a time behind the follower of events.
	turns *semaphore.Weighted
}

const (
	// savesAtOnce bounds the writes of records that the events of shims cause.
	savesAtOnce = 4
	// savePause is between two attempts to write a record that could not be written.
	savePause = time.Second
)

// NewDesk makes d, whose exported fields are set, ready for use.
func NewDesk(d Desk) *Desk {
	d.turns = semaphore.NewWeighted(savesAtOnce)
	return &d
}

// later spawns f when d has passed. Not at once even for d = 0: it is called under the ledger's lock, which f takes.
func (d *Desk) later(after time.Duration, f func()) {
	time.AfterFunc(after, func() { d.Spawn(f) })
}

// New makes a ledger that knows nothing. tells: the exits are for the daemon to tell where the shim does not.
func New(d *Desk, k Keeper, tells bool) *Ledger {
	return &Ledger{
		desk: d, keeper: k, tells: tells,
		exited: make(chan struct{}), news: make(chan struct{}), waiters: make(map[*waiting]struct{}),
	}
}

// Record is a copy of the whole record, for a bundle that is made with it.
func (l *Ledger) Record() *bundle.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cloneRecord(&l.rec)
}

// exitOfLocked is the exit in the record itself.
//
// +checklocks:l.mu
func (l *Ledger) exitOfLocked(execID string) *bundle.Exit {
	if execID == "" {
		if l.rec.Task == nil {
			return nil
		}
		return l.rec.Task.Exit
	}
	if x := l.rec.Execs[execID]; x != nil {
		return x.Exit
	}
	return nil
}

// taskLocked is the task's part of the record itself, which is there from now on.
//
// +checklocks:l.mu
func (l *Ledger) taskLocked() *bundle.TaskState {
	if l.rec.Task == nil {
		l.rec.Task = &bundle.TaskState{}
	}
	return l.rec.Task
}

// +checklocks:l.mu
func (l *Ledger) taskPidLocked() uint32 {
	if l.rec.Task == nil {
		return 0
	}
	return l.rec.Task.Pid
}

// News is closed at the next change that a caller may wait for: an exit is learnt or told, or is to be told at another
// time. It is taken before the ledger is looked at.
func (l *Ledger) News() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.news
}

// +checklocks:l.mu
func (l *Ledger) announceLocked() {
	close(l.news)
	l.news = make(chan struct{})
}

// Save writes the record. One that cannot be written does not fail the call that caused it; it is tried again until it
// is written, since an exit that is not on record when the daemon dies may be told a second time, and differently.
func (l *Ledger) Save() {
	err := l.Persist()
	if err == nil {
		return
	}
	l.mu.Lock()
	again := !l.writing.failed
	l.writing.failed = true
	l.mu.Unlock()
	if again {
		log.G(l.keeper.Context()).WithError(err).
			Warn("cannot write the instance's record; it is tried again until it succeeds")
		l.desk.Spawn(l.saveLater)
	}
}

// saveSoon is Save for the follower, which must not wait for a disk: thousands of events may be behind this one. Of the
// changes that are made before the write begins it takes all.
func (l *Ledger) saveSoon() {
	l.mu.Lock()
	due := l.writing.due
	l.writing.due = true
	l.mu.Unlock()
	if due {
		return
	}
	l.desk.Spawn(func() {
		// It cannot fail: records are written even while the daemon ends.
		_ = l.desk.turns.Acquire(context.Background(), 1)
		defer l.desk.turns.Release(1)
		l.mu.Lock()
		l.writing.due = false
		l.mu.Unlock()
		l.Save()
	})
}

// saveSoonIf is for a defer above that of the lock, which it takes.
func (l *Ledger) saveSoonIf(news *bool) {
	if *news {
		l.saveSoon()
	}
}

// saveLater tries to write the record until that succeeds, the bundle goes, or the daemon ends.
func (l *Ledger) saveLater() {
	for l.desk.Sleep(savePause) {
		if l.Persist() == nil {
			l.mu.Lock()
			l.writing.failed = false
			l.mu.Unlock()
			log.G(l.keeper.Context()).Info("the instance's record is written")
			return
		}
	}
}

// Persist writes the record, unless the bundle is being removed: what is written then could land in the bundle of a
// successor. What is there already is not written again: an exit is learnt from the shim's event and from its answers
// to Wait and to Delete, and each of them may be the first. A tmp cleaner may have removed it.
func (l *Ledger) Persist() error {
	l.saving.Lock()
	defer l.saving.Unlock()
	if l.sealed {
		return nil
	}
	// Not in one step: the instance gets and loses a bundle at moments that its create saves the record after.
	b := l.keeper.Bundle()
	if b == nil {
		return nil
	}
	rec := l.Record()
	if l.written.in == b && reflect.DeepEqual(l.written.rec, rec) && b.HasRecord() {
		return nil
	}
	l.written = written{}
	if err := b.WriteRecord(rec); err != nil {
		return err
	}
	l.written = written{b, rec}
	return nil
}

// Seal ends the writing of the record, and the holding of init.
func (l *Ledger) Seal() {
	l.saving.Lock()
	defer l.saving.Unlock()
	l.sealed = true
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	l.releaseLocked()
}

// releaseLocked lets init go. Closing its descriptor waits for nothing.
//
// +checklocks:l.mu
func (l *Ledger) releaseLocked() {
	l.held.Close()
	l.held = nil
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

func copyExit(e *bundle.Exit) *bundle.Exit {
	if e == nil {
		return nil
	}
	c := *e
	return &c
}
