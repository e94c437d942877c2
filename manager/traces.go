// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// findByToken is shimclient's, bounded.
func (m *ShimManager) findByToken(token string) ([]shimclient.ProcessID, error) {
	ctx, cancel := context.WithTimeout(m.ctx, shimproc.ScanTime)
	defer cancel()
	return shimclient.FindByToken(ctx, token)
}

// runs tells whether a process is one that the shim has told as the container's, with Create, Start or an event, or descends from one.
func (i *Instance) runs(id shimclient.ProcessID) bool {
	return slices.ContainsFunc(i.ledger.toldPids(), func(pid uint32) bool {
		if pid == 0 || int(pid) == id.Pid {
			return pid != 0
		}
		ancestor, err := shimclient.LookupProcess(int(pid))
		return err == nil && id.DescendsFrom(ancestor)
	})
}

// hasProcess tells whether a process lives, or may live, that looks like the instance's shim.
func (i *Instance) hasProcess() bool {
	i.mu.Lock()
	var tokens, dirs []string
	if token := i.ledger.passageLocked().token(); token != "" {
		tokens = append(tokens, token)
	}
	if i.bundle != nil {
		dirs = append(dirs, i.bundle.Path)
	}
	i.mu.Unlock()
	answered := i.ledger.answered()
	is, err := shimproc.Found(i.m.ctx, tokens, dirs, func(id shimclient.ProcessID) bool {
		if answered != 0 {
			return id.StartTime <= answered
		}
		return !i.runs(id)
	})
	if errdefs.IsNotImplemented(err) {
		return false
	}
	if err != nil {
		log.G(i.context()).WithError(err).Warn("cannot tell whether the shim lives, so it is taken to")
	}
	return is
}
