// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"time"

	"github.com/containerd/log"

	"github.com/shimyard/shimyard/bundle"
)

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
