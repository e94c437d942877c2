// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/shimclient"
)

// Licence is the right to end a process, or what a launch has left, by force: no process is ended on a guess. Only the
// code that has the proof makes one, and it is all in this file. The zero Licence gives no right.
type Licence struct {
	ground ground
	launch string // the token of the launch that it is for; "" where it is for a process
}

// ground is why a process may be ended.
type ground string

const (
	// saidYes: it has said yes to its shutdown, has no member and can get none.
	saidYes ground = "it has said yes to its shutdown"
	// provenDead: it is silent, and the container that is all it serves is certainly gone.
	provenDead ground = "it is silent and its container is gone"
	// configured: it has been silent for longer than the config allows.
	configured ground = "it has been silent for longer than is configured"
	// neverCreated: all that it serves are creates that have failed and are being undone.
	neverCreated ground = "it serves nothing but creates that have failed"
	// leftOver: it is left of a launch none of whose processes serves a task.
	leftOver ground = "nothing that its launch has started serves a task"
)

// Leaving is a process that has said yes to its shutdown.
type Leaving struct {
	p    *Process
	link *Link // that the yes came on; nil where there is none any more
}

// SaidYes is for a yes that AskToGo has not seen: of a shim to the shutdown of its sandbox, on the link l, and of one
// to an earlier daemon, as that has recorded; l is nil then.
func (p *Process) SaidYes(l *Link) *Leaving { return &Leaving{p, l} }

// licence to end the process; false while it has a member, or may get one.
func (l *Leaving) licence() (Licence, bool) {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	if !l.p.closing || len(l.p.behind) > 0 {
		return Licence{}, false
	}
	return Licence{ground: saidYes}, true
}

// CloseIfUnneeded lets no more members join and gives the licence to end the process, if it is silent, its pid is
// verified, and m, of which nothing runs any more, is all that is behind it. See Reopen.
func (p *Process) CloseIfUnneeded(m Member) (Licence, bool) {
	_, st, _ := p.Watch()
	if st == Connected || p.Verified() == (shimclient.ProcessID{}) || !m.Gone() || !p.closeIfAlone(m) {
		return Licence{}, false
	}
	return Licence{ground: provenDead}, true
}

// CloseIfAbandoned lets no more members join and gives the licence to end the process, if all that it serves are
// creates that are being undone.
func (p *Process) CloseIfAbandoned() (Licence, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for m := range p.behind {
		if !m.Facts().Abandoned {
			return Licence{}, false
		}
	}
	p.closing = true
	return Licence{ground: neverCreated}, true
}

// overdue gives the licence to end a process that has been silent for longer than the config allows.
func (p *Process) overdue() (Licence, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	limit := p.reg.config.EscalateAfter
	if limit <= 0 || p.state != Unresponsive || time.Since(p.since) < limit {
		return Licence{}, false
	}
	return Licence{ground: configured}, true
}

// LeftOver gives the licence to end what is left of a launch, if no process serves a task that was started by it. A
// task whose create has failed is none. Errors: FailedPrecondition when there is such a process.
func (r *Registry) LeftOver(token string) (Licence, error) {
	for _, p := range r.All() {
		if id := p.servesBy(token); id != "" {
			return Licence{}, errors.Wrapf(errdefs.ErrFailedPrecondition,
				"a process of the launch serves %s, at %s, so nothing of the launch is ended", id, p.Endpoint)
		}
	}
	return Licence{ground: leftOver, launch: token}, nil
}

// servesBy is the id of a task that the process serves and for which it was started by the launch, or of any that it
// serves where it was started for its keeper; "" for none. By what the members say now: tokens that are kept of those
// that have left may be of another process, which the process was taken for.
func (p *Process) servesBy(token string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for m := range p.behind {
		if f := m.Facts(); !f.Abandoned && (f.Token == token || p.kept == token) {
			return f.ID
		}
	}
	return ""
}

// EndLaunch ends what is left of the launch that the licence is for, but those processes for which spare holds; nil
// spares none. What a shim has run for a container carries the token too. It returns an error that names what is left
// when ctx ends, or after some time. Nothing is done without a licence for a launch.
func EndLaunch(ctx context.Context, by Licence, spare func(shimclient.ProcessID) bool) error {
	if by.launch == "" {
		return errors.Wrap(errdefs.ErrInvalidArgument, "cannot end a launch without a licence for it")
	}
	return shimclient.EndLaunch(ctx, by.launch, spare)
}
