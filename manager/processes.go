// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"fmt"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/shimclient"
)

// attach puts an instance behind the process at an endpoint, making that where it is new; a new one starts to connect
// at once. It fails when the process at that address is dead or on its way out. Every instance gets its process here:
// launched, joined or restored.
//
// An address says which process it is only as long as that keeps it: another may have taken the name since. So a shim
// that has just been launched is not the one of before whose pid is gone, or whose socket was removed; an instance
// whose recorded shim is gone is not served by the one of now: it gets a process of its own, which is found dead; and
// instances with different shims on record are behind different processes.
func (m *ShimManager) attach(i *Instance, ep shimclient.Endpoint, from origin) (p *Process, created bool, err error) {
	gone := from.pid != (shimclient.ProcessID{}) && !from.pid.Alive()
	m.mu.Lock()
	if !gone {
		p = m.processForLocked(ep, from)
	}
	if created = p == nil; created {
		p = newProcess(m, ep)
	}
	if err = p.join(i, from); err == nil && created && !gone {
		m.enterProcessLocked(p)
	}
	m.mu.Unlock()
	if err != nil {
		return p, false, err
	}
	if created {
		m.onBegin(p.run)
	}
	return p, created, nil
}

// processForLocked is the known process at an endpoint that an instance comes to; nil when it is another than those.
func (m *ShimManager) processForLocked(ep shimclient.Endpoint, from origin) *Process {
	p := m.processes[ep.String()]
	switch {
	case p == nil, from.anew, from.launched && p.isGone():
		return nil
	case p.isOther(from.pid):
		return m.processes[sideName(ep, from.pid)]
	}
	return p
}

// enterProcessLocked puts a process into the map. One that had its address goes aside: neither is taken for what
// listens there before it has said so.
func (m *ShimManager) enterProcessLocked(p *Process) {
	if old := m.processes[p.name]; old != nil {
		old.name = sideName(old.endpoint, old.verified())
		m.processes[old.name] = old
		old.contest()
		p.contest()
	}
	m.processes[p.name] = p
}

// sideName is the name of a process that does not have its address for itself.
func sideName(ep shimclient.Endpoint, pid shimclient.ProcessID) string {
	return fmt.Sprintf("%s of process %d, begun at %d", ep, pid.Pid, pid.StartTime)
}

// isOther tells whether a pid is known not to be the process's.
func (p *Process) isOther(pid shimclient.ProcessID) bool {
	mine, none := p.verified(), shimclient.ProcessID{}
	return mine != none && pid != none && mine != pid
}

func (p *Process) contest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.contested = true
}

// startedAnew tells whether what a `start` has answered with is another process than the known one whose address that
// is: the socket of a living shim was removed, and its group's next shim has made a new one.
func (m *ShimManager) startedAnew(ctx context.Context, ep shimclient.Endpoint) bool {
	p := m.processAt(ep)
	if p == nil || p.verified() == (shimclient.ProcessID{}) {
		return false
	}
	conn, err := shimclient.Dial(ctx, ep, p.limits())
	if err != nil {
		return false
	}
	defer conn.Close()
	return errors.Is(p.recognize(ctx, conn), errStranger)
}

// processAt is the process that is known at an endpoint; nil when there is none.
func (m *ShimManager) processAt(ep shimclient.Endpoint) *Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.processes[ep.String()]
}

// dropProcess takes p out of the map, if it is still there.
func (m *ShimManager) dropProcess(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.processes[p.name] == p {
		delete(m.processes, p.name)
	}
}
