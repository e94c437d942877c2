// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/manager/internal/failpoint"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// askAgain is the pause before a restored instance's shim is asked again after an answer that decides nothing.
const askAgain = time.Second

// takeOver asks the shim of a restored instance what it knows, until it says so or is proven dead. A shim that is silent keeps the
// instance restoring, for as long as that takes.
func (i *Instance) takeOver() {
	// At the end of the daemon the next start goes on.
	_ = await.Until(i.m.ctx, func() (await.Wake, bool) {
		p := i.process()
		st, changed := i.watch()
		if st != restoring || p == nil {
			return await.Wake{}, true
		}
		_, ps, moved := p.Watch()
		if ps == shimproc.Connected {
			if i.ask() {
				return await.Wake{}, true
			}
			moved = after(askAgain)
		}
		return await.Wake{changed, moved}, false
	})
}

// ask sends the one State (or Status) of a restore. True when it decided.
func (i *Instance) ask() bool {
	ctx := i.context()
	known, err := i.askKnown(ctx)
	if err == nil {
		err = i.confirm(ctx, known)
	}
	if err == nil {
		i.verifyShim(ctx)
	}
	switch {
	case errors.Is(err, shimproc.ErrStranger):
		i.loseStranger(err)
		return false
	case err != nil:
		if !errdefs.IsUnavailable(err) && !errdefs.IsDeadlineExceeded(err) {
			log.G(ctx).WithError(err).Warn("shim does not say what it knows of a restored instance; asking again")
		}
		return false
	case known:
		i.onAnswered()
		i.cleanUpIfDead()
		failpoint.Here("restore-answered")
		i.mendBootstrap()
		i.ledger.save()
		i.m.spawn(i.replayFound)
		return true
	case i.disownStranger():
		return false
	case i.onUnknown():
		log.G(ctx).Info("shim has no such task, cleaning up")
		if i.ledger.wasCreated() {
			i.m.spawn(i.cleanUpDeleted)
		} else {
			i.m.spawn(i.undo)
		}
	}
	return true
}

// disownStranger gives up a connection to another process than the instance's, whose pid is gone. True when it was one.
func (i *Instance) disownStranger() bool {
	p := i.process()
	if p == nil || !p.IsGone() {
		return false
	}
	if l, _, _ := p.Watch(); l != nil {
		_ = l.Conn.Close()
	}
	return true
}

// askKnown tells whether the instance exists: by its shim's word, or because the sandbox store knows the id. A sandbox's shim may
// serve no task under the sandbox's id.
func (i *Instance) askKnown(ctx context.Context) (bool, error) {
	err := i.askShim(ctx)
	if !errdefs.IsNotFound(err) || i.processDead() {
		return err == nil, err
	}
	if i.ledger.wasDeleted() {
		return false, nil
	}
	_, err = i.m.config.Sandboxes.Get(ctx, i.id)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, errors.Wrap(err, "cannot look into the sandbox store")
}

func (i *Instance) askShim(ctx context.Context) error {
	if i.kind == KindSandbox {
		return i.askSandbox(ctx)
	}
	_, err := i.sendState(ctx, "")
	return err
}

// verifyAgain verifies the shim's pid where the Connect of its launch was not answered in time. What cannot be verified after some
// tries never will be: a VM's pid, or one of another pid namespace.
func (i *Instance) verifyAgain(ctx context.Context) {
	p := i.process()
	if p == nil || p.Verified() != (shimclient.ProcessID{}) || !p.MayTryToVerify() {
		return
	}
	i.verifyShim(ctx)
}

// verifyShim makes sure that the shim's pid is known, for bundles whose record does not have it.
func (i *Instance) verifyShim(ctx context.Context) {
	p := i.process()
	if p == nil {
		return
	}
	if l, _, _ := p.Watch(); l != nil {
		i.mu.Lock()
		b, token := i.binary, i.ledger.passageLocked().token()
		i.mu.Unlock()
		p.Verify(ctx, l, b, token)
	}
	i.ledger.recordShim(p.Verified())
}

// askSandbox asks a restored sandbox's shim for its status.
func (i *Instance) askSandbox(ctx context.Context) error {
	return i.box(ctx, shimproc.Repeatable, func(ctx context.Context, s *shimclient.Sandbox) error {
		r, err := s.Status(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: i.id})
		if err == nil {
			i.learnPid(r.GetPid())
		}
		return err
	})
}
