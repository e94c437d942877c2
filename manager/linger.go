// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
)

const (
	// lingerNoted is how long after its yes to a Shutdown a shim may still run before that is recorded. Most are gone
	// long before.
	lingerNoted = 200 * time.Millisecond
	// lingerTimes is for how many cleanup timeouts a shim that said yes to its Shutdown may go on running before it
	// is ended.
	lingerTimes = 6
)

// shutDown asks the process, which serves no other instance, to go. lingering is nil when it is gone within the
// shutdown timeout. One that has said yes and lingers must keep the id: the `start` of the next task under it would
// find the old shim at its socket, take it for the group's, and end with it. Nor may another instance join it, so it
// stays known, closing, until it is gone.
func (i *Instance) shutDown(ctx context.Context, p *shimproc.Process) (lingering *shimproc.Leaving, err error) {
	ctx, cancel := timeout.WithContext(ctx, shimproc.TimeoutShutdown)
	defer cancel()
	leaving, err := p.AskToGo(ctx, i.id)
	if err != nil {
		return nil, err
	}
	return i.awaitShutdown(ctx, leaving), nil
}

// awaitShutdown waits until the process that said yes to its shutdown is gone; what is returned then is nil.
func (i *Instance) awaitShutdown(ctx context.Context, p *shimproc.Leaving) (lingering *shimproc.Leaving) {
	soon, cancel := context.WithTimeout(ctx, lingerNoted)
	gone := p.WaitGone(soon)
	cancel()
	if !gone {
		i.ledger.MarkLingering()
		gone = p.WaitGone(ctx)
	}
	if gone {
		return nil
	}
	return p
}

// cleanUpOnceGone keeps the id of a deleted instance reserved until its process, which said yes to its shutdown, is
// gone, and cleans up then. The delete itself is answered.
func (i *Instance) cleanUpOnceGone(p *shimproc.Leaving, c cleaning) {
	i.remains.SetLeft(errors.Errorf("its shim at %s has said yes to its shutdown and still runs", p.Process().Endpoint))
	i.onDeleted()
	patience := lingerTimes * timeout.Get(shimproc.TimeoutCleanup)
	i.m.spawn(func() { i.cleanUpAfter(p, c, patience) })
}

func (i *Instance) cleanUpAfter(p *shimproc.Leaving, c cleaning, patience time.Duration) {
	ctx := i.context()
	log.G(ctx).WithField("address", p.Process().Endpoint).Warn("shim has said yes to its shutdown and still runs")
	if !p.WaitOrKill(ctx, patience) {
		return // the manager was closed; the next start goes on
	}
	p.Process().End()
	if i.kind == life.Task && i.ledger.Unspoken() {
		if !i.waitInFlight() {
			return
		}
		i.tell()
	}
	i.remains.SetLeft(nil)
	i.clean(c)
}

// restoreLingering takes up what an earlier daemon did not come to the end of. Others may be behind the process where
// that daemon died before they were told that it is closing; then it is theirs.
func (i *Instance) restoreLingering(p *shimproc.Process) {
	i.activated()
	c := i.cleaningAfter(i.ledger.Exit("") != nil)
	if !p.Leave(behind{i}) {
		i.clean(c)
		return
	}
	i.cleanUpOnceGone(p.SaidYes(nil), c)
}
