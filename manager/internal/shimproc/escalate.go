// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"context"
	"time"

	"github.com/containerd/log"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/shimclient"
)

// escalateWhenDue ends a process that has been silent for longer than config allows, connected or not, and returns
// when it is ended or has answered.
func (p *Process) escalateWhenDue() {
	// At the end of the daemon untilEscalation says that it is over.
	_ = await.UntilDue(context.WithoutCancel(p.reg.ctx), func() (await.Wake, time.Duration, bool) {
		left, changed, over := p.untilEscalation()
		switch {
		case over:
			return await.Wake{}, 0, true
		case left <= 0 && p.escalate():
			return await.Wake{}, 0, true
		case left <= 0:
			left = lastPause
		}
		return await.Wake{changed, p.reg.ctx.Done()}, left, false
	})
}

// untilEscalation is how long the process may stay silent yet; over when it is not silent any more.
func (p *Process) untilEscalation() (left time.Duration, changed <-chan struct{}, over bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != Unresponsive || p.reg.ctx.Err() != nil {
		p.escalates = false
		return 0, nil, true
	}
	return p.reg.config.EscalateAfter - time.Since(p.since), p.changed, false
}

// escalate ends a shim that has been silent for longer than config allows, which by default it may be for ever. Its
// stacks are in the log before that: runc's shim, and those made with containerd's package, dump them at SIGUSR1.
// True when it was ended.
func (p *Process) escalate() bool {
	pid := p.Verified()
	if pid == (shimclient.ProcessID{}) {
		return false
	}
	p.logger(p.reg.ctx).
		Errorf("shim has not answered for %s, ending it and its containers, as configured", p.reg.config.EscalateAfter)
	if err := DumpStacks(pid); err != nil {
		log.G(p.reg.ctx).WithError(err).Warn("cannot make the shim dump its stacks")
	} else if !await.Sleep(p.reg.ctx, dumpTime) {
		return false
	}
	by, ok := p.overdue()
	return ok && p.Kill(p.reg.ctx, by) // else it was woken by the signal, or by chance
}
