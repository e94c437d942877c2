// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"context"
	"slices"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/shimclient"
)

// probeReach bounds one attempt to find out whether an address has a listener.
const probeReach = 2 * time.Second

// sight is what a look for a process has come to.
type sight int

const (
	unseen sight = iota // not looked for, or the look has failed: it may live
	alive
	gone
	hidden // the platform lets no process be looked at
)

// evidence is what is known of a process that there is no connection to.
type evidence struct {
	pid    sight // of the process whose pid is verified; unseen where none is
	lost   bool  // its address is not known any more
	traced bool  // and its launch is on record
	// unix and local are of the address, launched says that a daemon of this machine has started it.
	unix, local, launched bool
	reach                 shimclient.Reach
	overdue               bool // there has been no connection for the whole load timeout
	// traces is of all that may be the shim among what carries the tokens of its launches or works in its directories.
	traces sight
}

// excluded tells whether what is known so far leaves no room for a proof by the address and the traces.
func (e evidence) excluded() bool {
	switch {
	case e.pid != unseen:
		return true // the pid decides alone
	case e.lost && !e.traced:
		return true
	case e.reach == shimclient.Reachable, e.unix && e.reach != shimclient.Refused:
		return true
	}
	return !(e.launched && e.local) && !e.overdue
}

// proof says why the process is certainly dead, "" when it may live. What proves death:
//
//   - the verified pid is gone;
//   - or no pid was verified, the connect is refused or the socket is missing, and no process of its launches
//     lives, which takes a look at all of them that did not fail. A missing socket alone proves nothing, tmp
//     cleaners remove them. A refused abstract socket may be one of another network namespace, so it must be
//     refused for the whole load timeout, and so must the socket of a process that no daemon of this machine
//     launched;
//   - for vsock and the like: unreachable for the whole load timeout. A connect that succeeds is no failure,
//     whatever follows it.
//
// Where the platform lets no process be looked at, its connection is all that a shim can be judged by, for the whole
// load timeout.
func (e evidence) proof() string {
	if e.pid == gone {
		return "its process is gone"
	}
	if !e.excluded() && (e.traces == gone || e.traces == hidden && e.overdue) {
		return "it cannot be reached and no process of it lives"
	}
	return ""
}

// proofOfDeath is asked only while there is no connection, from is when that began. See evidence.proof.
func (p *Process) proofOfDeath(from time.Time) string { return p.gather(from).proof() }

// gather looks at what can prove the death of the process, the cheapest first, and at no more than may still matter.
func (p *Process) gather(from time.Time) evidence {
	p.mu.Lock()
	pid, e := p.pid, evidence{lost: p.noAddress != nil, traced: p.traced, launched: p.launched}
	p.mu.Unlock()
	e.unix, e.local = p.Endpoint.Unix(), p.Endpoint.Local()
	if pid != (shimclient.ProcessID{}) {
		e.pid = gone
		if pid.Alive() {
			e.pid = alive
		}
		return e
	}
	if e.lost && !e.traced {
		return e
	}
	e.reach = p.reach()
	e.overdue = time.Since(from) >= timeout.Get(TimeoutLoad)
	if !e.excluded() {
		e.traces = p.lookForTraces()
	}
	return e
}

// reach tells whether the address has a listener.
func (p *Process) reach() shimclient.Reach { return Probe(p.reg.ctx, p.Endpoint) }

// Probe tells whether an address has a listener.
func Probe(ctx context.Context, ep shimclient.Endpoint) shimclient.Reach {
	ctx, cancel := context.WithTimeout(ctx, probeReach)
	defer cancel()
	return ep.Probe(ctx)
}

// isLocalShortage tells errors of a connect that are about this daemon.
func isLocalShortage(err error) bool {
	return slices.ContainsFunc([]error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS,
		context.Canceled},
		func(e error) bool { return errors.Is(err, e) })
}

// IsLaunched tells whether a daemon of this machine has started the process.
func (p *Process) IsLaunched() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.launched
}

// Verify asks the shim for its pid and checks it, once. A pid that cannot be verified (a VM's, another pid
// namespace's) stays unknown.
func (p *Process) Verify(ctx context.Context, l *Link, b shimclient.Binary, token string) {
	p.mu.Lock()
	known := p.pid != shimclient.ProcessID{}
	p.mu.Unlock()
	if known || !p.Endpoint.Unix() {
		return
	}
	r, err := l.Task.Connect(ctx, &taskapi.ConnectRequest{ID: p.anyID()})
	if err != nil || r.ShimPid == 0 {
		return
	}
	pid, err := shimclient.VerifyShim(ctx, int(r.ShimPid), b, token)
	if err != nil {
		log.G(ctx).WithError(err).WithField("pid", r.ShimPid).Debug("cannot verify the shim's pid")
		return
	}
	if p.begunForTask(pid) {
		log.G(ctx).WithField("pid",
			r.ShimPid).Debug("what the shim tells as its pid is a process that it has run for a task")
		return
	}
	p.setPid(pid)
}

// MayTryToVerify counts the attempts to verify the pid again, of which there are few: what cannot be verified after
// some never will be.
func (p *Process) MayTryToVerify() bool { return p.tries.Add(1) <= verifyTries }

func (p *Process) setPid(pid shimclient.ProcessID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if (p.pid == shimclient.ProcessID{}) {
		p.pid = pid
	}
}

// Verified is the pid of the shim, as it was verified once; zero where it is not, or not yet.
func (p *Process) Verified() shimclient.ProcessID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}
