// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/shimclient"
)

// scanTime bounds one look for the processes of a shim.
const scanTime = 5 * time.Second

// found tells whether a process lives, or may live, that carries one of the tokens or works in one of the directories, and that may be
// the shim. What could not be looked at may be. A platform whose processes cannot be looked at has an error of class NotImplemented.
func found(ctx context.Context, tokens, dirs []string, mayBeShim func(shimclient.ProcessID) bool) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, scanTime)
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

// mayLive tells whether a process lives, or may live, that looks like the shim: a look that failed proves nothing. Where the platform
// lets no process be looked at, its connection is all that a shim can be judged by, for the whole load timeout.
func (p *Process) mayLive(from time.Time) bool {
	tokens, dirs := p.traces()
	is, err := found(p.reg.ctx, tokens, dirs, p.mayBeShim)
	if errdefs.IsNotImplemented(err) {
		return time.Since(from) < timeout.Get(timeoutLoad)
	}
	if err != nil {
		log.G(p.reg.ctx).WithError(err).WithField("address", p.endpoint).Debug("cannot tell whether a shim lives")
	}
	return is
}

// mayBeShim tells whether a process that was found by a trace of the shim's may be the shim. Containers of some runtimes (runwasi's)
// inherit the shim's environment, as do hooks, and what these leave behind: what began after the shim had answered is none. Where that
// moment is not known, a process that the shim told as a container's is none, nor is what descends from it.
func (p *Process) mayBeShim(id shimclient.ProcessID) bool {
	if id == p.verified() {
		return true
	}
	p.mu.Lock()
	answered := p.upAt
	p.mu.Unlock()
	if answered != 0 {
		return id.StartTime <= answered
	}
	return !slices.ContainsFunc(p.members(), func(m member) bool { return m.runs(id) })
}

// begunForTask tells whether a process began when the shim had answered already, which is to say for a task.
func (p *Process) begunForTask(id shimclient.ProcessID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.upAt != 0 && id.StartTime > p.upAt
}

// answeredNow notes that the shim has answered and has no task yet, and returns the moment.
func (p *Process) answeredNow() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.upAt == 0 {
		p.upAt = shimclient.Now()
	}
	return p.upAt
}

// sparing tells which carriers of the tokens of a process that nobody is behind any more are not ended with what an instance has made:
// all but the shim, what was started with it, and what began since the instance took it. A hook, or a container before this one, may
// have left them behind.
func (p *Process) sparing(took uint64) func(shimclient.ProcessID) bool {
	p.mu.Lock()
	shim, answered := p.pid, p.upAt
	p.mu.Unlock()
	return sparing(shim, answered, took)
}

func sparing(shim shimclient.ProcessID, answered, took uint64) func(shimclient.ProcessID) bool {
	return func(id shimclient.ProcessID) bool {
		return id != shim && id.StartTime > answered && (took == 0 || id.StartTime < took)
	}
}
