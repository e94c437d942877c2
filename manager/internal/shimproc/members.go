// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/log"

	"github.com/shimyard/shimyard/shimclient"
)

// Member is what a process sees of one that it serves. Members are compared with ==, and kept as keys of maps.
type Member interface {
	// Enter makes p the member's process; facts says what is known of the member now. Both are called with the
	// process's lock held: they may take the member's own, and no other, and do nothing else.
	Enter(p *Process) Facts
	Facts() Facts
	// Runs tells whether a process is one that the shim has run for the member, so that it is not the shim. Called with
	// no lock held.
	Runs(shimclient.ProcessID) bool
	// Gone tells whether what the shim has run for the member is certainly gone. Called with no lock held.
	Gone() bool
}

// Facts are what a process has to know of a member.
type Facts struct {
	Namespace, ID string
	// Groups are ids of instances whose shim may serve it too.
	Groups []string
	Binary shimclient.Binary
	// Token and Dir are its launch and its bundle, by which processes are found; "" where there is none.
	Token, Dir string
	// Joined: the process was started for another one, or for none.
	Joined bool
	// Abandoned: it is a create that is being undone.
	Abandoned bool
}

// Origin is what a member knows of its process before that is connected.
type Origin struct {
	Launched bool                 // by a daemon of this machine
	Pid      shimclient.ProcessID // verified by an earlier daemon
	Answered uint64               // as that daemon has recorded it
	// Group is the instance whose shim is joined; "" where the spec names the group.
	Group string
	// Anew: another process than the known one at its address.
	Anew bool
	// Owned: the process's keeper gave it to the member, or it was the member's before this daemon began.
	Owned bool
}

// Keeper is the keeper of a process that was started for no member, and goes on without any.
type Keeper interface {
	// StartID is the id that it was started under.
	StartID() string
	// Runtime is the name of the runtime that its shim is of.
	Runtime() string
	// Take makes p the keeper's. Called with p's lock held, and does nothing else.
	Take(p *Process)
}

// KeptFacts are what a keeper knows of its process.
type KeptFacts struct {
	Pid shimclient.ProcessID // verified; zero where it is not known
	// when it ran and had no task yet, in clock ticks since boot; 0 when that is not known
	Answered   uint64
	Token, Dir string
	Binary     shimclient.Binary
}

// Join adds a member; it fails when the process is dead or on its way out.
func (p *Process) Join(m Member, from Origin) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.state == Ended:
		return ErrDead
	case p.closing, p.keeper != nil && !from.Owned && !p.servesGroupLocked(m.Facts(), from.Group):
		return ErrClosing
	}
	p.launched = p.launched || from.Launched
	if none := (shimclient.ProcessID{}); (p.pid == none) != (from.Pid == none) && len(p.behind) > 0 {
		// The one without may have been answered by a successor, just before an earlier daemon ended.
		p.contested = true
	}
	if p.pid == (shimclient.ProcessID{}) {
		p.pid = from.Pid
	}
	if p.upAt == 0 {
		p.upAt = from.Answered
	}
	p.enterLocked(m)
	return nil
}

// enterLocked puts a member behind the process.
//
// +checklocks:p.mu
func (p *Process) enterLocked(m Member) {
	p.behind[m] = struct{}{}
	f := m.Enter(p)
	if f.Token != "" {
		p.tokens[f.Token] = struct{}{}
	}
	if p.deadlines == nil {
		p.deadlines = p.reg.config.Deadlines(f.Binary)
	}
	if f.Dir != "" {
		p.dirs[f.Dir] = struct{}{}
	}
}

// removeLocked takes a member out, and its traces with it if another one has started the process: that serves one
// container after the other for as long as its pod, or a warm shim, lives.
//
// +checklocks:p.mu
func (p *Process) removeLocked(m Member) {
	delete(p.behind, m)
	f := m.Facts()
	if !f.Joined {
		return
	}
	delete(p.tokens, f.Token)
	delete(p.dirs, f.Dir)
}

// servesGroupLocked tells whether the process serves a member that f wants to be served with. A kept process may be
// another's by the time that a member comes with its address.
//
// +checklocks:p.mu
func (p *Process) servesGroupLocked(f Facts, group string) bool {
	for m := range p.behind {
		o := m.Facts()
		if o.Namespace == f.Namespace && (o.ID == group || slices.Contains(f.Groups, o.ID)) {
			return true
		}
	}
	return false
}

// KeepFor makes a process the keeper's. Errors: FailedPrecondition for one that has a keeper, or has ended.
func (p *Process) KeepFor(k Keeper, from KeptFacts) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keeper != nil || p.state == Ended {
		return errNotOurs(p)
	}
	p.keeper, p.launched = k, true
	k.Take(p)
	p.deadlines = p.reg.config.Deadlines(from.Binary)
	if (p.pid == shimclient.ProcessID{}) {
		p.pid = from.Pid
	}
	if p.upAt == 0 {
		p.upAt = from.Answered
	}
	p.tokens[from.Token], p.kept = struct{}{}, from.Token
	p.dirs[from.Dir] = struct{}{}
	return nil
}

// Keeper is the process's keeper; nil where it was started for one instance.
func (p *Process) Keeper() Keeper {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keeper
}

// Leave takes a member out. last tells that none is left; from then on none may join.
func (p *Process) Leave(m Member) (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeLocked(m)
	return p.closeIfEmptyLocked()
}

// CloseIfEmpty lets no more members join, if none is behind the process. True when it is so.
func (p *Process) CloseIfEmpty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closeIfEmptyLocked()
}

// +checklocks:p.mu
func (p *Process) closeIfEmptyLocked() bool {
	if len(p.behind) > 0 {
		return false
	}
	p.closing = true
	return true
}

// closeIfAlone lets no more members join, if m is all that is behind the process. True when it is so.
func (p *Process) closeIfAlone(m Member) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, is := p.behind[m]; !is || len(p.behind) > 1 {
		return false
	}
	p.closing = true
	return true
}

// Reopen undoes a CloseIfUnneeded: the process could not be ended.
func (p *Process) Reopen() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != Ended {
		p.closing = false
		p.wakeLocked()
	}
}

// Remove takes a member out of a process that goes on without any. left is how many are still in it.
func (p *Process) Remove(m Member) (left int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeLocked(m)
	return len(p.behind)
}

// Stay undoes a leave: the process could not be shut down, its last member is to be deleted again.
func (p *Process) Stay(m Member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != Ended {
		p.closing = false
		p.enterLocked(m)
		p.wakeLocked()
	}
}

// Members are those behind the process at this moment.
func (p *Process) Members() []Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.behind))
}

// anyID is the id of one of the members, or the one that the process was started under, for calls that are about the
// process.
func (p *Process) anyID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for m := range p.behind {
		return m.Facts().ID
	}
	if p.keeper != nil {
		return p.keeper.StartID()
	}
	return ""
}

// runtimeName is the runtime that the shim is of.
func (p *Process) runtimeName() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.runtimeLocked()
}

// runtimeLocked is that of the members, which have the same if it is known of them, or of the keeper.
//
// +checklocks:p.mu
func (p *Process) runtimeLocked() string {
	for m := range p.behind {
		if name := m.Facts().Binary.Runtime; name != "" {
			return name
		}
	}
	if p.keeper != nil {
		return p.keeper.Runtime()
	}
	return ""
}

// namedInLog is how many instances a line of the log names; a shim may serve hundreds.
const namedInLog = 8

// logger is for lines that an operator acts on: they name the shim's address, its pid if that is verified, its runtime,
// and whom it serves. The fields have the names that package manager's lines of one instance have.
func (p *Process) logger(ctx context.Context) *log.Entry {
	fields := log.Fields{"address": p.Endpoint}
	p.mu.Lock()
	if p.pid != (shimclient.ProcessID{}) {
		fields["shim_pid"] = p.pid.Pid
	}
	served := make([]string, 0, len(p.behind))
	for m := range p.behind {
		f := m.Facts()
		served = append(served, f.Namespace+"/"+f.ID)
	}
	runtime := p.runtimeLocked()
	p.mu.Unlock()
	if runtime != "" {
		fields["runtime"] = runtime
	}
	slices.Sort(served)
	if more := len(served) - namedInLog; more > 0 {
		served = append(served[:namedInLog], fmt.Sprintf("and %d more", more))
	}
	if len(served) > 0 {
		fields["serves"] = served
	}
	return log.G(ctx).WithFields(fields)
}
