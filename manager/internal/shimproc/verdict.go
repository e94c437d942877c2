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

// probeReach bounds one attempt to find out whether anybody listens at an address.
const probeReach = 2 * time.Second

// proofOfDeath says why the process is certainly dead, "" when it may live. It is asked only while there is no connection, from is
// when that began. What proves death:
//
//   - the verified pid is gone;
//   - or no pid was verified, the connect is refused or the socket is missing, and no process of its launches lives, which takes a look
//     at all of them that did not fail. A missing socket alone proves nothing, tmp cleaners remove them. A refused abstract socket may be one of another network namespace, so it
//     must be refused for the whole load timeout, and so must the socket of a process that no daemon of this machine launched;
//   - for vsock and the like: unreachable for the whole load timeout. A connect that succeeds is no failure, whatever follows it.
func (p *Process) proofOfDeath(from time.Time) string {
	if pid := p.Verified(); pid != (shimclient.ProcessID{}) {
		if pid.Alive() {
			return ""
		}
		return "its process is gone"
	}
	if p.noAddress != nil && !p.isTraced() {
		return ""
	}
	reach := p.reach()
	if reach == shimclient.Reachable || p.Endpoint.Unix() && reach != shimclient.Refused {
		return ""
	}
	if !(p.IsLaunched() && p.Endpoint.Local()) && time.Since(from) < timeout.Get(TimeoutLoad) {
		return ""
	}
	if p.mayLive(from) {
		return ""
	}
	return "it cannot be reached and no process of it lives"
}

// reach tells whether anybody listens at the address.
func (p *Process) reach() shimclient.Reach { return Probe(p.reg.ctx, p.Endpoint) }

// Probe tells whether anybody listens at an address.
func Probe(ctx context.Context, ep shimclient.Endpoint) shimclient.Reach {
	ctx, cancel := context.WithTimeout(ctx, probeReach)
	defer cancel()
	return ep.Probe(ctx)
}

// isLocalShortage tells errors of a connect that are about this daemon.
func isLocalShortage(err error) bool {
	return slices.ContainsFunc([]error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, context.Canceled},
		func(e error) bool { return errors.Is(err, e) })
}

func (p *Process) isTraced() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.traced
}

func (p *Process) IsLaunched() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.launched
}

// Verify asks the shim for its pid and checks it, once. A pid that cannot be verified (a VM's, another pid namespace's) stays unknown.
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
		log.G(ctx).WithField("pid", r.ShimPid).Debug("what the shim tells as its pid is a process that it has run for a task")
		return
	}
	p.setPid(pid)
}

// MayTryToVerify counts the attempts to verify the pid again, of which there are few: what cannot be verified after some
// never will be.
func (p *Process) MayTryToVerify() bool { return p.tries.Add(1) <= verifyTries }

func (p *Process) setPid(pid shimclient.ProcessID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if (p.pid == shimclient.ProcessID{}) {
		p.pid = pid
	}
}

func (p *Process) Verified() shimclient.ProcessID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}
