// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// behind is an instance as its shim process sees it.
type behind struct{ i *Instance }

var _ shimproc.Member = behind{}

// enter makes p the instance's process.
func (b behind) Enter(p *shimproc.Process) shimproc.Facts {
	b.i.mu.Lock()
	defer b.i.mu.Unlock()
	b.i.proc = p
	return b.i.memberFactsLocked()
}

func (b behind) Facts() shimproc.Facts {
	b.i.mu.Lock()
	defer b.i.mu.Unlock()
	return b.i.memberFactsLocked()
}

func (i *Instance) memberFactsLocked() shimproc.Facts {
	way := i.ledger.passageLocked()
	f := shimproc.Facts{
		Namespace: i.namespace, ID: i.id, Groups: i.groups, Binary: i.binary, Token: way.token(), Joined: way.joined,
		Abandoned: i.state == reaping && i.ledger.abandonedLocked(),
	}
	if i.bundle != nil {
		f.Dir = i.bundle.Path
	}
	return f
}

func (b behind) Runs(id shimclient.ProcessID) bool { return b.i.runs(id) }

func (b behind) Gone() bool { return b.i.initGone() }

func (b behind) Died() { b.i.cleanUpIfDead() }

// instancesOf are the instances behind a process at this moment.
func instancesOf(p *shimproc.Process) []*Instance {
	members := p.Members()
	all := make([]*Instance, len(members))
	for n, m := range members {
		all[n] = m.(behind).i
	}
	return all
}
