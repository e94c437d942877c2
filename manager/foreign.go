// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// foreignState is what a bundle of stock containerd tells of its task: init.pid, written by the runc shim.
func foreignState(b *bundle.Bundle) *bundle.TaskState {
	pid, start := foreignPid(b)
	if pid == 0 {
		return &bundle.TaskState{}
	}
	return &bundle.TaskState{Status: tasktypes.Status_RUNNING.String(), Pid: uint32(pid), PidStart: start}
}

// launchedHere tells whether a daemon of this machine started the shim: a sandbox that a proxy plugin's sandboxer owns
// has its shim wherever that one wants. Of a bundle that stock containerd left, only the lack of a sandbox tells.
func (i *Instance) launchedHere() bool {
	i.mu.Lock()
	way, d := i.ledger.Passage(), i.bundle
	i.mu.Unlock()
	launched := way.Launched || way.Launch != nil
	if launched || !i.foreign() {
		return launched
	}
	_, err := d.Sandbox()
	return err != nil
}

// foreign tells that no launch of ours is on record.
func (i *Instance) foreign() bool {
	way := i.ledger.Passage()
	return way.Launch == nil && !way.Joined
}

// leader is the id of the instance whose shim serves this one, as its bundle tells: the sandbox that it joined, or its
// group; "" where it is served by a shim of its own.
func (i *Instance) leader() string {
	i.mu.Lock()
	d, launch := i.bundle, i.ledger.Passage().Launch
	i.mu.Unlock()
	id, err := d.Sandbox()
	switch {
	case err == nil:
	case launch != nil && len(launch.Groups) > 0:
		id = launch.Groups[0]
	case launch == nil:
		id = groupOf(d)
	}
	if id == i.id {
		return ""
	}
	return id
}

// follows tells whether an instance that is there has the shim which serves this one.
func (i *Instance) follows() bool {
	id := i.leader()
	return id != "" && i.m.find(i.namespace, id) != nil
}

// groupOf reads the group of a bundle from its spec, as runc's shim does; "" where there is none.
func groupOf(d *bundle.Bundle) string {
	raw, err := d.Spec()
	if err != nil {
		return ""
	}
	facts, err := parseSpec(raw)
	if err != nil || len(facts.groups) == 0 {
		return ""
	}
	return facts.groups[0]
}

// openLog takes over the log of a restored shim. Only an instance that started its shim has one; in a pod that stock
// containerd left it is the pause container, whose bundle the shim was started in.
func (i *Instance) openLog() {
	i.mu.Lock()
	p, d, joined := i.proc, i.bundle, i.ledger.Passage().Joined
	i.mu.Unlock()
	if joined || p == nil || i.foreign() && i.follows() {
		return
	}
	c, err := shimclient.OpenLog(d.LogPath(), log.Fields{"id": i.id, "namespace": i.namespace})
	if err != nil {
		log.G(i.context()).WithError(err).Warn("cannot open the log of a restored shim")
		return
	}
	p.SetLog(c)
}

// foreignPid judges the init.pid of a bundle that stock containerd left, whose shim may be silent: the process is taken
// for the container's if it began before the file was written. That is good for answering, not for signals.
func foreignPid(b *bundle.Bundle) (pid int, start uint64) {
	pid, written, err := b.InitPid()
	if err != nil {
		return 0, 0
	}
	id, err := shimclient.LookupProcess(pid)
	if err != nil || !id.StartedBefore(written) {
		return pid, 0
	}
	return pid, id.StartTime
}
