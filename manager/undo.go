// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"
	"syscall"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

const (
	// createGrace is how long the undo of a create waits for a Create call whose caller has left, helperGrace for what
	// the shim has run for one that was cut off, before the launch is ended by force, where the shim serves no other
	// instance. Until then it is not known what is being made, and what is made afterwards would be left behind: an OCI
	// runtime that is ended half way leaves cgroups that its own delete does not know of.
	createGrace = 30 * time.Second
	helperGrace = 10 * time.Second
	helperPause = 20 * time.Millisecond // between looks at what the shim runs
	// firstUndoPause and lastUndoPause are between attempts to have the shim delete what a create has made.
	firstUndoPause = 5 * time.Millisecond
	lastUndoPause  = time.Second
	// alonePause is between two looks at whether the shim still serves others, while an undo waits for it.
	alonePause = time.Second
	// createdGrace is how long the undo of a create waits for the exit of the init that it has killed: it is short of
	// the cleanup timeout, within which Delete must be answered too.
	createdGrace = 2 * time.Second
)

// abandon undoes a create that failed. It returns when everything is undone, the caller's context has ended, or the
// cleanup timeout has passed; what is not undone by then goes on in the background, with the id reserved. A caller
// that has given up is not held: the shim's Delete may be waiting for the very fifos that the caller closes next.
func (m *ShimManager) abandon(caller context.Context, i *Instance) {
	if !i.onLaunchFailed() {
		return
	}
	done := m.spawn(i.undo)
	ctx, cancel := timeout.WithContext(m.ctx, shimproc.TimeoutCleanup)
	defer cancel()
	select {
	case <-done:
	case <-caller.Done():
	case <-ctx.Done():
		i.logger(i.context()).Warn("undoing a failed create goes on in the background")
	}
}

// undo takes back what a create, or a launch that a crash cut short, has made: the task in the shim, the shim process
// if it serves no other instance, what was launched with it, and the bundle. The manager tells nothing of it: there was
// no task. What the shim tells by itself cannot be held back: of a Create that was answered after its caller had left,
// subscribers hear create, exit and delete, in this order.
func (i *Instance) undo() {
	ctx := i.context()
	if err := i.ledger.Abandon(); err != nil {
		i.logger(ctx).WithError(err).Warn("cannot record that a create was given up")
	}
	failpoint.Here("undo-recorded")
	answered := i.awaitCreate(ctx)
	p := i.process()
	i.m.pool.distrust(p)
	i.awaitHelpers(p)
	undone := p == nil || i.undoTask(ctx, p) && answered
	if ctx.Err() != nil {
		return // the manager was closed; the next start goes on
	}
	if !undone && len(p.Members()) > 1 {
		i.endForAll(ctx, p)
	}
	// Only now: a shim whose last instance leaves is told to end, and it would not while it has the task.
	if p == nil || p.Leave(behind{i}) {
		i.undoShim(ctx, p)
		i.endLaunchOf(p)
	}
	i.remains.SetLeft(nil)
	i.clean(cleaning{shimDelete: p != nil})
}

// awaitCreate waits for the answer of a Create whose caller has left; false when it did not come. A shim that serves no
// other instance is ended by force when it has not answered within createGrace. One that serves others cannot be, and
// an answer that is not waited for would leave a container in it that no record knows: it is waited for as long as that
// takes.
func (i *Instance) awaitCreate(ctx context.Context) (answered bool) {
	answer := i.creation.Owed()
	if answer == nil {
		return true
	}
	defer i.creation.Settle()
	began, said := time.Now(), false
	// At the end of the daemon the next start goes on.
	_ = await.UntilDue(ctx, func() (await.Wake, time.Duration, bool) {
		if answered = await.IsClosed(answer); answered || time.Since(began) < createGrace {
			return await.Wake{answer}, alonePause, answered
		}
		if p := i.process(); p == nil || isAbandoned(p) {
			i.logger(ctx).Warnf("shim has not answered a create for %s after its caller left; ending the launch",
				createGrace)
			return await.Wake{}, 0, true
		}
		if !said { // the looks that follow are no attempts at anything
			i.stuck(errors.Errorf("its shim has not answered the Create since %s, when the caller gave up",
				began.UTC().Format(time.RFC3339)))
		}
		said = true
		return await.Wake{answer}, alonePause, false
	})
	return answered
}

// isAbandoned tells whether all that a shim serves are creates that are being undone. If so, no other may join it.
func isAbandoned(p *shimproc.Process) bool {
	_, is := p.CloseIfAbandoned()
	return is
}

// endForAll ends a shim that does not undo what several creates have made in it, which are all that it has: for each
// of them `shim delete` removes what is left then.
func (i *Instance) endForAll(ctx context.Context, p *shimproc.Process) {
	licence, ok := p.CloseIfAbandoned()
	if pid := p.Verified(); ok && pid != (shimclient.ProcessID{}) {
		i.logger(ctx).
			Warn("ending a shim that serves nothing but creates that have failed, and does not undo them")
		p.Kill(ctx, licence)
	}
}

// stuck records, and logs once, why an undo cannot go on yet; it is what a create of the id is told.
func (i *Instance) stuck(err error) {
	if i.remains.SetLeft(err) {
		i.logger(i.context()).WithError(err).
			Warnf("cannot undo a failed create of a %s in a shim that serves others; going on until it is done", i.kind)
	}
}

// undoTask deletes what Create may have made in the shim. Where the shim serves others it is asked until it says that
// nothing is there: what it keeps would not be known, and it could not end. Where it serves no other instance one
// attempt is made; what follows ends the shim. False when it has not said so.
func (i *Instance) undoTask(ctx context.Context, p *shimproc.Process) bool {
	limit, pause := timeout.Get(shimproc.TimeoutCleanup), firstUndoPause
	for {
		err := i.tryUndoTask(ctx, p, limit)
		switch {
		case err == nil, errdefs.IsNotFound(err): // of the task, or since the process is dead
			return true
		case isAbandoned(p):
			i.logger(ctx).WithError(err).Warn("cannot delete what a failed create has made; the shim's delete will")
			return false
		}
		i.stuck(errors.Wrap(err, "its shim does not delete what a failed create has made"))
		if !i.m.sleep(pause) {
			return false
		}
		// A Delete that has timed out goes on in the shim, and the next one waits behind it.
		limit, pause = min(2*limit, i.m.cleanPauses.Last), min(2*pause, lastUndoPause)
	}
}

func (i *Instance) tryUndoTask(ctx context.Context, p *shimproc.Process, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	l, err := p.Use(ctx, shimproc.Forced)
	if err != nil {
		return err
	}
	if i.kind == life.Sandbox {
		err = l.Conn.Sandbox().Shutdown(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: i.id})
	} else {
		err = i.undoCreate(ctx, l)
	}
	if errdefs.IsDeadlineExceeded(err) {
		p.Suspect()
	}
	return err
}

// undoShim shuts the process down, which no instance is behind any more.
func (i *Instance) undoShim(ctx context.Context, p *shimproc.Process) {
	if p == nil || !p.IsLaunched() {
		return
	}
	if err := p.ShutDown(ctx, i.id); err != nil {
		i.logger(ctx).WithError(err).Warn("cannot shut down the shim of a failed create; ending it")
	}
}

// undoCreate deletes a task. Its init is killed first, and waited for: runc's shim deletes a task that was never
// started without that, and tells the deletion, with status 0, before the exit.
func (i *Instance) undoCreate(ctx context.Context, l *shimproc.Link) error {
	i.endCreated(ctx, l)
	for pause := firstUndoPause; ; pause = min(2*pause, lastUndoPause) {
		_, err := l.Task.Delete(ctx, &taskapi.DeleteRequest{ID: i.id})
		if err == nil || errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) || ctx.Err() != nil {
			return err
		}
		kerr := l.Task.Kill(ctx, &taskapi.KillRequest{ID: i.id, Signal: uint32(syscall.SIGKILL), All: true})
		if kerr != nil && !errdefs.IsNotFound(kerr) {
			return err
		}
		if !await.Sleep(ctx, pause) {
			return err
		}
	}
}

// endCreated ends the init of a task that is to be deleted and waits, up to createdGrace, for the shim to say so. An
// error decides nothing: there may be no task, or none that can be killed yet (a restore from a checkpoint), and
// Delete is sent all the same.
func (i *Instance) endCreated(ctx context.Context, l *shimproc.Link) {
	ctx, cancel := context.WithTimeout(ctx, createdGrace)
	defer cancel()
	kill := &taskapi.KillRequest{ID: i.id, Signal: uint32(syscall.SIGKILL), All: true}
	if err := l.Task.Kill(ctx, kill); err != nil {
		return
	}
	if _, err := l.Task.Wait(ctx, &taskapi.WaitRequest{ID: i.id}); err != nil {
		i.logger(ctx).WithError(err).
			Warn("shim does not say that the init of a failed create has ended; deleting it without that")
	}
}

// endLaunchOf makes cleaning begin with the end of all processes of the instance's launch, and of those that made its
// process, which no other instance is behind.
func (i *Instance) endLaunchOf(p *shimproc.Process) {
	var tokens []string
	var spare func(shimclient.ProcessID) bool
	if p != nil {
		tokens, _ = p.Traces()
		spare = p.Sparing(i.ledger.Passage().Took)
		p.End()
	}
	i.mu.Lock()
	way, house := i.ledger.Passage(), i.house
	i.mu.Unlock()
	if way.Took == 0 && !way.Joined {
		spare = nil // the record of an earlier version; the launch is the instance's own
	}
	if way.Launch != nil && !way.Joined && !slices.Contains(tokens, way.Launch.Token) {
		tokens = append(tokens, way.Launch.Token)
	}
	if p == nil && house != nil {
		tokens = append(tokens, house.token)
		spare = shimproc.Sparing(shimclient.ProcessID{}, house.answered, way.Took)
	}
	i.remains.SetLaunches(tokens, spare)
}

// awaitHelpers waits until no process of the instance's launch is left but the shim itself: a Create that a crash of
// the daemon, or the death of the shim, has cut off goes on in the OCI runtime that the shim has run for it. What was
// there before, and what was detached, as a hook detaches a daemon, is not waited for.
func (i *Instance) awaitHelpers(p *shimproc.Process) {
	tokens := i.launchTokens(p)
	if len(tokens) == 0 || p == nil {
		return
	}
	took := i.ledger.Passage().Took
	helps := func(id shimclient.ProcessID) bool {
		return !p.MayBeShim(id) && id.StartTime >= took && !id.LeadsSession()
	}
	until := time.Now().Add(helperGrace)
	for time.Now().Before(until) {
		others := func(token string) bool {
			ids, err := i.m.findByToken(token)
			return err != nil && !errdefs.IsNotImplemented(err) || slices.ContainsFunc(ids, helps)
		}
		if !slices.ContainsFunc(tokens, others) || !i.m.sleep(helperPause) {
			return
		}
	}
}

// launchTokens are the launches by which what the shim runs for the instance is found, if a Create of it may still be
// under way.
func (i *Instance) launchTokens(p *shimproc.Process) []string {
	way := i.ledger.Passage()
	switch {
	case !i.creation.WasCut() || p == nil:
		return nil
	case way.Warm != "":
		tokens, _ := p.Traces()
		return tokens
	case way.Launch == nil || way.Joined:
		return nil
	}
	return []string{way.Launch.Token}
}

// findByToken is shimclient's, bounded.
func (m *ShimManager) findByToken(token string) ([]shimclient.ProcessID, error) {
	ctx, cancel := context.WithTimeout(m.ctx, shimproc.ScanTime)
	defer cancel()
	return shimclient.FindByToken(ctx, token)
}
