// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"sync"
	"time"

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

// savesAtOnce bounds the writes of records that the events of shims cause.
const savesAtOnce = 4

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

// Begin starts the record of an instance that there is nothing of yet.
func (l *Ledger) Begin(runtime string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec = bundle.Record{
		Version: bundle.RecordVersion, Runtime: runtime, Begun: time.Now().UTC(), BootID: shimclient.BootID(),
	}
}

// Load takes over a record, as that which an earlier daemon wrote.
func (l *Ledger) Load(rec *bundle.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.exitOfLocked("") != nil
	l.rec = *cloneRecord(rec)
	if !known && l.exitOfLocked("") != nil {
		close(l.exited)
	}
}

// Record is a copy of the whole record, for a bundle that is made with it.
func (l *Ledger) Record() *bundle.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cloneRecord(&l.rec)
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

// Fate is how far a task, or a sandbox, has come.
type Fate struct {
	Created   bool // the shim has made it
	Abandoned bool // its create, or the start of a sandbox, has come to nothing
	Deleted   bool // the shim has deleted it
	Lingers   bool // all that is left to do is to wait for the end of the shim
}

// NeverCreated tells whether a create has come to nothing. For what was created once, as a sandbox that did not start,
// it has no meaning.
func (f Fate) NeverCreated() bool { return f.Abandoned && !f.Created }

// Fate of the task or sandbox, as far as it is on record.
func (l *Ledger) Fate() Fate {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Fate{Created: l.rec.Created, Abandoned: l.rec.Abandoned, Deleted: l.rec.Deleted, Lingers: l.rec.Lingers}
}

// Abandon records that the create has come to nothing. A daemon that dies while it is undone, which may take as long
// as a shim is silent, leaves the bundle for the next one, which must not take what the shim has made after all for a
// task.
func (l *Ledger) Abandon() error {
	l.mu.Lock()
	l.rec.Abandoned = true
	l.mu.Unlock()
	return l.Persist()
}

// MarkLingering records that all that is left to do is to wait for the end of the shim. A daemon that dies meanwhile
// leaves the bundle for the next one, which must not take the task for a living one.
func (l *Ledger) MarkLingering() {
	l.mu.Lock()
	l.rec.Lingers = true
	l.mu.Unlock()
	l.Save()
}

// MarkDeleted records that the shim has deleted the task.
func (l *Ledger) MarkDeleted() {
	l.mu.Lock()
	l.rec.Deleted = true
	l.mu.Unlock()
	l.Save()
}
