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
	"github.com/containerd/errdefs"
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

// ScanTime bounds one look for the processes of a shim.
const ScanTime = 5 * time.Second

// Found tells whether a process lives, or may live, that carries one of the tokens or works in one of the
// directories, and that may be the shim. What could not be looked at may be. A platform whose processes cannot be
// looked at has an error of class NotImplemented.
func Found(ctx context.Context, tokens, dirs []string, mayBeShim func(shimclient.ProcessID) bool) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, ScanTime)
	defer cancel()
	look := func(names []string, find func(context.Context, string) ([]shimclient.ProcessID, error)) (bool, error) {
		for _, name := range names {
			if ids, err := find(ctx, name); err != nil || slices.ContainsFunc(ids, mayBeShim) {
				return true, err
			}
		}
		return false, nil
	}
	if is, err := look(tokens, shimclient.FindByToken); is {
		return is, err
	}
	return look(dirs, shimclient.FindByDir)
}

// lookForTraces looks for a process that may be the shim: a look that failed proves nothing.
func (p *Process) lookForTraces() sight {
	tokens, dirs := p.Traces()
	is, err := Found(p.reg.ctx, tokens, dirs, p.MayBeShim)
	switch {
	case errdefs.IsNotImplemented(err):
		return hidden
	case err != nil:
		log.G(p.reg.ctx).WithError(err).WithField("address", p.Endpoint).Debug("cannot tell whether a shim lives")
		return unseen
	case is:
		return alive
	}
	return gone
}

// MayBeShim tells whether a process that was found by a trace of the shim's may be the shim.
func (p *Process) MayBeShim(id shimclient.ProcessID) bool {
	if id == p.Verified() {
		return true
	}
	p.mu.Lock()
	answered := p.upAt
	p.mu.Unlock()
	return IsOfShimsAge(id, answered, func(id shimclient.ProcessID) bool {
		return slices.ContainsFunc(p.Members(), func(m Member) bool { return m.Runs(id) })
	})
}

// IsOfShimsAge tells whether a process with a trace of a shim may be the shim, by when it began. Containers of some
// runtimes (runwasi's) inherit the shim's environment, as do hooks, and what these leave behind: what began after the
// shim had answered is none. Where that moment is not known (0), and within its clock tick, in which a fast shim may
// have begun and run its first container, a process that the shim told as a container's is none, nor is what descends
// from it: runs says that.
func IsOfShimsAge(id shimclient.ProcessID, answered uint64, runs func(shimclient.ProcessID) bool) bool {
	if answered != 0 && id.StartTime != answered {
		return id.StartTime < answered
	}
	return !runs(id)
}

// begunForTask tells whether a process began when the shim had answered already, which is to say for a task.
func (p *Process) begunForTask(id shimclient.ProcessID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.upAt != 0 && id.StartTime > p.upAt
}

// AnsweredNow notes that the shim has answered and has no task yet, and returns the moment.
func (p *Process) AnsweredNow() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.upAt == 0 {
		p.upAt = shimclient.Now()
	}
	return p.upAt
}

// Sparing tells which carriers of the tokens of a process without members are not ended with what an
// instance has made: all but the shim, what was started with it, and what began since the instance took it. A hook,
// or a container before this one, may have left them behind.
func (p *Process) Sparing(took uint64) func(shimclient.ProcessID) bool {
	p.mu.Lock()
	shim, answered := p.pid, p.upAt
	p.mu.Unlock()
	return Sparing(shim, answered, took)
}

// Sparing is Process.Sparing for a shim of which only the record is left: its pid, zero where that is not known, when
// it had answered, and when the member took it, 0 where that is not known.
func Sparing(shim shimclient.ProcessID, answered, took uint64) func(shimclient.ProcessID) bool {
	return func(id shimclient.ProcessID) bool {
		return id != shim && id.StartTime > answered && (took == 0 || id.StartTime < took)
	}
}
