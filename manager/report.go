// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"cmp"
	"context"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

// logger is for lines about an instance: they name it, its runtime, and its shim's pid if that is verified. Not for a
// caller that holds a lock.
func (i *Instance) logger(ctx context.Context) *log.Entry {
	fields := log.Fields{"namespace": i.namespace, "id": i.id}
	if name := cmp.Or(i.startedFrom().Runtime, i.ledger.Passage().Runtime); name != "" {
		fields["runtime"] = name
	}
	if pid := i.shimPid(); pid != (shimclient.ProcessID{}) {
		fields["shim_pid"] = pid.Pid
	}
	return log.G(ctx).WithFields(fields)
}

// reportCleaned says that what could not be removed is removed. A clean-up that went well from the start is no news.
func (i *Instance) reportCleaned(ctx context.Context) {
	if since, failed := i.remains.Failed(); failed > 0 {
		i.logger(ctx).WithFields(log.Fields{"after": rounded(since), "attempts": failed + 1}).
			Infof("cleaned up after %s, which had failed before", i.kind)
	}
}

// rounded is the time since t, as a line of the log tells it.
func rounded(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }

// labelRuntime lets the runtime of an instance that was found have its name in the metrics, if that had resolved when it
// was created: one that has joined another's shim may have come with any name.
func labelRuntime(rec *bundle.Record) {
	if rec.Launch != nil || rec.Warm != "" {
		metrics.Resolved(rec.Runtime)
	}
}

// outcomes are what becomes of an instance that was found at the start of the daemon, as metrics.Restored names them.
var outcomes = []string{"running", "undone", "dead", "left_alone"}

// tally counts what has become of the instances that were found at the start. Safe for concurrent use.
type tally struct {
	undecided atomic.Int64 // of those it is not known yet
	by        [4]atomic.Int64
	settled   chan struct{} // closed when it is known of all
}

// decided counts one. True for the last.
func (t *tally) decided(outcome string) bool {
	for n, name := range outcomes {
		if name == outcome {
			t.by[n].Add(1)
		}
	}
	last := t.undecided.Add(-1) == 0
	if last {
		close(t.settled)
	}
	return last
}

// reportRestored says, once and for all instances, what a restore has come to. One whose shim is silent holds it up: it
// has a line of its own.
func (m *ShimManager) reportRestored() {
	fields := log.Fields{"duration": rounded(m.desk.Started())}
	for n, name := range outcomes {
		fields[name] = m.tally.by[n].Load()
	}
	log.G(m.ctx).WithFields(fields).Info("all that an earlier daemon left is settled")
}
