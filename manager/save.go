// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	"github.com/containerd/log"

	"github.com/shimyard/shimyard/bundle"
)

// savePause is between two attempts to write a record that could not be written.
const savePause = time.Second

// save writes the record. One that cannot be written does not fail the call that caused it; it is tried again until it
// is written, since an exit that is not on record when the daemon dies may be told a second time, and differently.
func (i *Instance) save() {
	err := i.persist()
	if err == nil {
		return
	}
	i.mu.Lock()
	again := !i.unsaved
	i.unsaved = true
	i.mu.Unlock()
	if again {
		log.G(i.context()).WithError(err).
			Warn("cannot write the instance's record; it is tried again until it succeeds")
		i.m.spawn(i.saveLater)
	}
}

// saveSoon is save for the follower, which must not wait for a disk: thousands of events may be behind this one. Of the
// changes that are made before the write begins it takes all.
func (i *Instance) saveSoon() {
	i.mu.Lock()
	due := i.saveDue
	i.saveDue = true
	i.mu.Unlock()
	if due {
		return
	}
	i.m.spawn(func() {
		if i.m.saves.Acquire(context.Background(), 1) != nil { // writes even while the manager is closed
			return
		}
		defer i.m.saves.Release(1)
		i.mu.Lock()
		i.saveDue = false
		i.mu.Unlock()
		i.save()
	})
}

// saveLater tries to write the record until that succeeds, the bundle goes, or the manager is closed.
func (i *Instance) saveLater() {
	for i.m.sleep(savePause) {
		if i.persist() == nil {
			i.mu.Lock()
			i.unsaved = false
			i.mu.Unlock()
			log.G(i.context()).Info("the instance's record is written")
			return
		}
	}
}

// persist writes the record, unless the bundle is being removed: what is written then could land in the bundle of a
// successor.
func (i *Instance) persist() error {
	i.saving.Lock()
	defer i.saving.Unlock()
	if i.sealed {
		return nil
	}
	i.mu.Lock()
	b, rec := i.bundle, cloneRecord(&i.rec)
	i.mu.Unlock()
	if b == nil {
		return nil
	}
	return b.WriteRecord(rec)
}

// seal ends the writing of the record.
func (i *Instance) seal() {
	i.saving.Lock()
	i.sealed = true
	i.saving.Unlock()
}

func cloneRecord(r *bundle.Record) *bundle.Record {
	c := *r
	if r.Task != nil {
		t := *r.Task
		if t.Exit != nil {
			e := *t.Exit
			t.Exit = &e
		}
		c.Task = &t
	}
	if r.Execs != nil {
		c.Execs = make(map[string]*bundle.ExecState, len(r.Execs))
		for id, x := range r.Execs {
			y := *x
			if x.Exit != nil {
				e := *x.Exit
				y.Exit = &e
			}
			c.Execs[id] = &y
		}
	}
	return &c
}
