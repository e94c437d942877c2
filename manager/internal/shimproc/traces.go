// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/shimclient"
)

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
