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
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/shimclient"
)

const (
	// createGrace is how long the undo of a create waits for a Create call whose caller has left, helperGrace for what the shim has run
	// for one that was cut off, before the launch is ended by force. Until then nobody knows what is being made, and what is made afterwards would be left
	// behind: an OCI runtime that is ended half way leaves cgroups that its own delete does not know of.
	createGrace = 30 * time.Second
	helperGrace = 10 * time.Second
	helperPause = 20 * time.Millisecond // between looks at what the shim runs
	// createdGrace is how long the undo of a create waits for the exit of the init that it has killed: it is short of the cleanup
	// timeout, within which Delete must be answered too.
	createdGrace = 2 * time.Second
)

// createTask sends Create. When ctx ends first, the call goes on without the caller and its answer is left for the undo to wait for.
func (i *Instance) createTask(ctx context.Context, opts runtime.CreateOpts, rootfs []mount.Mount) (uint32, error) {
	req := &taskapi.CreateTaskRequest{
		ID: i.id, Bundle: i.bundle.Path,
		Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal,
		Checkpoint: opts.Checkpoint, Options: options(opts), Rootfs: mount.ToProto(rootfs),
	}
	var resp *taskapi.CreateTaskResponse
	err := i.detached(ctx, func(ctx context.Context) (err error) {
		resp, err = i.sendCreate(ctx, req)
		return err
	})
	if err != nil {
		return 0, err
	}
	return resp.Pid, nil
}

// detached runs a create call that must not be abandoned half way.
func (i *Instance) detached(ctx context.Context, call func(context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- call(context.WithoutCancel(ctx)) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		i.mu.Lock()
		i.creates = done
		i.mu.Unlock()
		return errors.Wrapf(ctx.Err(), "creating %s %s", i.kind, i.id)
	}
}

func (i *Instance) sendCreate(ctx context.Context, req *taskapi.CreateTaskRequest) (resp *taskapi.CreateTaskResponse, err error) {
	i.setCut(true)
	err = i.call(ctx, forced, func(ctx context.Context, t *shimclient.Task) error {
		resp, err = t.Create(ctx, req)
		return err
	})
	i.setCut(errors.Is(err, shimclient.ErrConnectionLost) || errors.Is(err, errShimDead))
	return resp, err
}

func (i *Instance) setCut(cut bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cut = cut
}

// abandon undoes a create that failed. It returns when everything is undone or the cleanup timeout has passed; what is not undone by
// then goes on in the background, with the id reserved.
func (m *ShimManager) abandon(i *Instance) {
	if !i.onLaunchFailed() {
		return
	}
	done := m.spawn(i.undo)
	ctx, cancel := timeout.WithContext(m.ctx, TimeoutCleanup)
	defer cancel()
	select {
	case <-done:
	case <-ctx.Done():
		log.G(i.context()).Warn("undoing a failed create goes on in the background")
	}
}

// undo takes back what a create, or a launch that a crash cut short, has made: the task in the shim, the shim process if it serves
// nobody else, what was launched with it, and the bundle. The manager tells nothing of it: there was no task. What the shim tells by
// itself cannot be held back: of a Create that was answered after its caller had left, subscribers hear create, exit and delete, in
// this order.
func (i *Instance) undo() {
	ctx := i.context()
	i.awaitCreate(ctx)
	p := i.process()
	i.m.pool.distrust(p)
	i.awaitHelpers(p)
	last := p == nil || p.leave(i)
	if p != nil {
		i.undoTask(ctx, p, last)
	}
	if last {
		i.endLaunchOf(p)
	}
	i.clean(cleaning{shimDelete: p != nil})
}

// endLaunchOf makes cleaning begin with the end of all processes of the instance's launch, and of those that made its process, which
// nobody else is behind.
func (i *Instance) endLaunchOf(p *Process) {
	var tokens []string
	if p != nil {
		tokens, _ = p.traces()
		p.end()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if l := i.rec.Launch; l != nil && !i.rec.Joined && !slices.Contains(tokens, l.Token) {
		tokens = append(tokens, l.Token)
	}
	i.tokens = tokens
}

// awaitCreate waits for the answer of a Create whose caller has left.
func (i *Instance) awaitCreate(ctx context.Context) {
	i.mu.Lock()
	answer := i.creates
	i.mu.Unlock()
	if answer == nil {
		return
	}
	t := time.NewTimer(createGrace)
	defer t.Stop()
	select {
	case <-answer:
	case <-t.C:
		log.G(ctx).Warnf("shim has not answered a create for %s after its caller left; ending the launch", createGrace)
	case <-ctx.Done():
	}
}

// awaitHelpers waits until no process of the instance's launch is left but the shim itself: a Create that a crash of the daemon, or the
// death of the shim, has cut off goes on in the OCI runtime that the shim has run for it.
func (i *Instance) awaitHelpers(p *Process) {
	tokens := i.launchTokens(p)
	if len(tokens) == 0 || p == nil {
		return
	}
	shim := p.verified()
	if (shim == shimclient.ProcessID{}) {
		return // it could not be told from what it runs
	}
	until := time.Now().Add(helperGrace)
	for time.Now().Before(until) {
		others := func(token string) bool {
			return slices.ContainsFunc(shimclient.FindByToken(token), func(id shimclient.ProcessID) bool { return id != shim })
		}
		if !slices.ContainsFunc(tokens, others) || !i.m.sleep(helperPause) {
			return
		}
	}
}

// launchTokens are the launches by which what the shim runs for the instance is found, if a Create of it may still be under way.
func (i *Instance) launchTokens(p *Process) []string {
	i.mu.Lock()
	launch, warm, wait := i.rec.Launch, i.rec.Warm != "", i.cut
	joined := i.rec.Joined
	i.mu.Unlock()
	switch {
	case !wait || p == nil:
		return nil
	case warm:
		tokens, _ := p.traces()
		return tokens
	case launch == nil || joined:
		return nil
	}
	return []string{launch.Token}
}

// undoTask deletes the task that Create may have made and sends the process away when nobody else is behind it.
func (i *Instance) undoTask(ctx context.Context, p *Process, last bool) {
	dctx, cancel := timeout.WithContext(ctx, TimeoutCleanup)
	defer cancel()
	l, err := p.use(dctx, forced)
	if err != nil {
		return
	}
	if i.kind == KindSandbox {
		err = l.conn.Sandbox().Shutdown(dctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: i.id})
	} else {
		err = i.undoCreate(dctx, l)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).Warn("cannot delete what a failed create has made; the shim's delete will")
	}
	if last && p.isLaunched() {
		if err := p.shutdown(ctx, i.id); err != nil {
			log.G(ctx).WithError(err).Warn("cannot shut down the shim of a failed create; ending it")
		}
	}
}

// undoCreate deletes a task. Its init is killed first, and waited for: runc's shim deletes a task that was never started without that,
// and tells the deletion, with status 0, before the exit.
func (i *Instance) undoCreate(ctx context.Context, l *link) error {
	i.endCreated(ctx, l)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		_, err := l.task.Delete(ctx, &taskapi.DeleteRequest{ID: i.id})
		if err == nil || errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) || ctx.Err() != nil {
			return err
		}
		if kerr := l.task.Kill(ctx, &taskapi.KillRequest{ID: i.id, Signal: uint32(syscall.SIGKILL), All: true}); kerr != nil && !errdefs.IsNotFound(kerr) {
			return err
		}
		if !i.m.sleep(pause) {
			return err
		}
	}
}

// endCreated ends the init of a task that is to be deleted and waits, up to createdGrace, for the shim to say so. An error decides
// nothing: there may be no task, or none that can be killed yet (a restore from a checkpoint), and Delete is sent all the same.
func (i *Instance) endCreated(ctx context.Context, l *link) {
	ctx, cancel := context.WithTimeout(ctx, createdGrace)
	defer cancel()
	kill := &taskapi.KillRequest{ID: i.id, Signal: uint32(syscall.SIGKILL), All: true}
	if err := l.task.Kill(ctx, kill); err != nil {
		return
	}
	if _, err := l.task.Wait(ctx, &taskapi.WaitRequest{ID: i.id}); err != nil {
		log.G(ctx).WithError(err).Warn("shim does not say that the init of a failed create has ended; deleting it without that")
	}
}
