// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/ledger"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/spans"
	"github.com/shimyard/shimyard/shimclient"
)

// cleaning is the removal of what is left of an instance.
type cleaning struct {
	// shimDelete: `shim delete` is due.
	shimDelete bool
	// orderly: the shim has deleted the task by itself, so that nothing hangs on its `delete`.
	orderly bool
}

// cleaningAfter is what is left to clean after a delete. orderly: its exit is known from the shim.
func (i *Instance) cleaningAfter(orderly bool) cleaning {
	return cleaning{shimDelete: !orderly || i.deletesAlways(), orderly: orderly}
}

// clean removes what is left of the instance and then the instance, trying with growing pauses until it succeeds or the
// manager is closed. Until then the id stays reserved; after a close the next start goes on.
func (i *Instance) clean(c cleaning) {
	ctx := i.context()
	cleaned := await.Retry(i.m.ctx, i.m.cleanPauses, func() bool {
		err := i.cleanOnce(ctx, &c)
		if err != nil && i.remains.SetLeft(err) {
			i.logger(ctx).WithError(err).Errorf("cannot clean up after %s; it is tried again until it succeeds", i.kind)
		}
		return err == nil
	})
	if cleaned {
		i.reportCleaned(ctx)
		i.m.forget(i)
	}
}

// cleanOnce is one attempt: processes of a launch that got no task, `shim delete` where it is due, sockets no process
// listens on, the bundle, and the mounts that were activated for it.
func (i *Instance) cleanOnce(ctx context.Context, c *cleaning) error {
	err := i.tryClean(ctx, c)
	metrics.Cleanup(err == nil)
	return err
}

func (i *Instance) tryClean(ctx context.Context, c *cleaning) error {
	if err := i.endLaunches(ctx); err != nil {
		return err
	}
	if c.shimDelete {
		if err := i.tryShimDelete(ctx, c.orderly); err != nil {
			return err
		}
	}
	ctx, end := spans.Child(ctx, spans.Delete+".cleanup")
	err := i.removeRest(ctx)
	end(err)
	return err
}

// endLaunches ends the processes that carry the tokens of launches that came to nothing, but those that were there
// before the instance. It must succeed before the bundle goes: the tokens are in it.
func (i *Instance) endLaunches(ctx context.Context) error {
	tokens, spare := i.remains.Launches()
	ctx, cancel := timeout.WithContext(ctx, shimproc.TimeoutCleanup)
	defer cancel()
	for _, token := range tokens {
		by, err := i.m.procs.LeftOver(token)
		if err == nil {
			err = shimproc.EndLaunch(ctx, by, spare)
		}
		if err != nil && !errdefs.IsNotImplemented(err) {
			return errors.Wrap(err, "cannot end the processes of the launch")
		}
	}
	return nil
}

func (i *Instance) removeRest(ctx context.Context) error {
	i.mu.Lock()
	d, way := i.bundle, i.ledger.Passage()
	i.mu.Unlock()
	warm := way.Warm != ""
	// Of one that a warm shim serves, which a damaged record does not tell.
	for _, address := range i.addresses() {
		i.m.launcher.UnlinkSocket(i.namespace, i.id, address)
	}
	if warm && i.homeless() {
		i.m.removeSocketsOfDead(i.namespace, []string{way.Warm}, i.addresses()...)
	}
	// The last of a group removes the group's socket: the first, which the shim was started for, may be gone.
	if p := i.process(); !way.Joined || !warm && p != nil && p.IsOver() {
		ids := []string{i.id}
		if way.Launch != nil {
			ids = append(ids, way.Launch.Groups...)
		}
		i.m.launcher.RemoveSockets(i.namespace, ids, i.addresses()...)
	}
	if d != nil {
		i.ledger.Seal()
		failpoint.Here("clean-bundle")
		if err := i.removeBundle(d); err != nil {
			return errors.Wrap(err, "cannot remove the bundle")
		}
		failpoint.Here("clean-removed")
	}
	if i.remains.IsMounted() {
		i.deactivate(ctx)
	}
	return nil
}

// homeless tells whether the instance was served by a warm shim that is over and of whose directory nothing is known:
// where the record of it is lost, nothing else removes its sockets.
func (i *Instance) homeless() bool {
	i.mu.Lock()
	house, p := i.house, i.proc
	i.mu.Unlock()
	return house == nil && (p == nil || p.IsOver())
}

// addresses are where the instance's shim says, or said, that it listens.
func (i *Instance) addresses() []string {
	if r, err := i.bootstrap(); err == nil {
		return []string{r.Address}
	}
	if p := i.process(); p != nil {
		return []string{p.Endpoint.Address}
	}
	return nil
}

// cleanUpDead is what follows the proof of death: the exit is found out and told, then the deletion, and nothing is
// left behind.
func (i *Instance) cleanUpDead() {
	ctx, end := i.startSpan(i.context(), spans.Reap)
	defer end(nil)
	i.leaveProcess()
	if !i.waitInFlight() {
		return
	}
	if i.ledger.Fate().Created {
		if i.ledger.Exit("") != nil || i.ledger.InitGone() {
			i.ledger.NoteOOM() // while the cgroup is there; what `shim delete` ends now is not ended for lack of memory
		}
		exit, ok := i.findExit(ctx)
		if !ok {
			return // the manager was closed; the next start goes on
		}
		if i.ledger.Init().Alive() {
			i.killInit(ctx) // what the shim's delete should have done
		}
		i.ledger.LearnDeath(exit)
		failpoint.Here("bury-recorded")
		if i.kind == life.Task {
			i.tell()
		}
	}
	i.activated()
	if !i.ledger.Fate().Created {
		i.endOwnLaunch()
	}
	i.clean(cleaning{shimDelete: true})
}

// endOwnLaunch makes cleaning begin with the end of all processes of a launch whose answer is not on record, so that no
// Create was sent: which shim it has made is not known, it may be another than the one that has died.
func (i *Instance) endOwnLaunch() {
	way := i.ledger.Passage()
	if way.Launch == nil || way.Joined || way.Launch.Answered != 0 {
		return
	}
	i.remains.SetLaunches([]string{way.Launch.Token}, shimproc.Sparing(shimclient.ProcessID{}, 0, way.Took))
}

// waitInFlight waits until what the shim itself has told must have arrived and, at a start of the daemon, until
// subscribers can listen.
func (i *Instance) waitInFlight() bool {
	return i.m.follower.HearAll(max(ledger.InFlight, subscribersBack-time.Since(i.m.desk.Started())))
}

// leaveProcess detaches the instance from its process and ends that when no instance is left in it.
func (i *Instance) leaveProcess() {
	if p := i.process(); p != nil && p.Leave(behind{i}) {
		p.End()
	}
}

// activated notes that the instance's mounts are to be deactivated when it goes.
func (i *Instance) activated() {
	if i.kind == life.Task {
		i.remains.SetMounted()
	}
}

// deactivate is part of cleaning; what fails is left to the garbage collector, by the label.
func (i *Instance) deactivate(ctx context.Context) {
	if err := i.m.mounts.Deactivate(ctx, i.id); err != nil {
		i.logger(ctx).WithError(err).Error("cannot deactivate the task's mounts, leaving them to the garbage collector")
	}
}

// bootstrap returns how to reach the instance's shim: what its bundle says or, if that is lost, what our record does.
func (i *Instance) bootstrap() (*bootapi.BootstrapResult, error) {
	d, known := i.home(), i.ledger.Passage().Endpoint
	if d == nil {
		return nil, errors.Wrapf(errdefs.ErrUnavailable, "%s %s is still being started", i.kind, i.id)
	}
	r, err := d.ReadBootstrap()
	if known == nil || err == nil && r.Address != known.Address {
		return r, err
	}
	// An address that a shim has left by itself says neither version nor protocol.
	return &bootapi.BootstrapResult{
		Version: int32(known.Version), Protocol: known.Protocol, Address: known.Address, Extensions: r.GetExtensions(),
	}, nil
}

// removeBundle removes the bundle, without the directory of a warm shim that goes on without the instance.
func (i *Instance) removeBundle(d *bundle.Bundle) error {
	i.mu.Lock()
	house := i.house
	i.mu.Unlock()
	if house != nil {
		if err := i.m.pool.vacate(house, d); err != nil {
			return err
		}
	}
	return d.Remove()
}

// cleanUpIfDead sees to a death that came while the state was one in which another step had to: it is asked after
// every return to running. True when the instance is dead.
func (i *Instance) cleanUpIfDead() bool {
	p := i.process()
	if p == nil || !p.IsDead() {
		return false
	}
	if i.onDeath() {
		i.m.spawn(i.cleanUpDead)
	}
	return true
}

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
	ctx := log.WithLogger(i.context(), i.logger(i.context()))
	p.WarnOfLingering(ctx)
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
