// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"time"

	"github.com/containerd/log"

	"github.com/shimyard/shimyard/bundle"
)

// savePause is between two attempts to write a record that could not be written.
const savePause = time.Second

// writing is what is known of the record's file.
type writing struct {
	due    bool // a write behind the follower has not begun yet
	failed bool // the record is not as it should be on disk
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

// SaveSoon is Save for the follower, which must not wait for a disk: thousands of events may be behind this one. Of the
// changes that are made before the write begins it takes all.
func (l *Ledger) SaveSoon() {
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
// successor.
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
	return b.WriteRecord(l.Record())
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
