// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"time"

	"github.com/shimyard/shimyard/shimclient"
)

// Licence is the right to end a process by force: no process is ended on a guess. Only the code that has the proof
// makes one, and it is all in this file. The zero Licence gives no right.
type Licence struct{ ground ground }

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
	return Licence{saidYes}, true
}

// CloseIfUnneeded lets no more members join and gives the licence to end the process, if it is silent, its pid is
// verified, and m, of which nothing runs any more, is all that is behind it. See Reopen.
func (p *Process) CloseIfUnneeded(m Member) (Licence, bool) {
	_, st, _ := p.Watch()
	if st == Connected || p.Verified() == (shimclient.ProcessID{}) || !m.Gone() || !p.closeIfAlone(m) {
		return Licence{}, false
	}
	return Licence{provenDead}, true
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
	return Licence{neverCreated}, true
}

// overdue gives the licence to end a process that has been silent for longer than the config allows.
func (p *Process) overdue() (Licence, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	limit := p.reg.config.EscalateAfter
	if limit <= 0 || p.state != Unresponsive || time.Since(p.since) < limit {
		return Licence{}, false
	}
	return Licence{configured}, true
}
