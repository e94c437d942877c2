// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/runtime"

	"github.com/shimyard/shimyard/shimclient"
)

// exitKilled is the status of a process that SIGKILL ended: the kernel's for lack of memory, or anybody's.
const exitKilled = 128 + 9

// A shim tells TaskOOM before the exit, and both are lost when the daemon is away for longer than the shim tries. The
// exit is found out from the shim afterwards; why it came about only the container's cgroup knows, which is there until
// the task is deleted. Clients take the reason from the event alone: CRI its OOMKilled, moby its State.OOMKilled.

// memoryOf is the memory cgroup of a process, and how many were killed in it so far. Nothing where the process has no
// cgroup other than its shim's: what is killed there may be another's.
func memoryOf(pid uint32, shim shimclient.ProcessID) (cgroup string, kills uint64) {
	cgroup, err := shimclient.MemoryCgroup(int(pid))
	if err != nil {
		return "", 0
	}
	if own, err := shimclient.MemoryCgroup(shim.Pid); err != nil || own == cgroup {
		return "", 0
	}
	if kills, err = shimclient.OOMKills(cgroup); err != nil {
		return "", 0
	}
	return cgroup, kills
}

// noteOOM looks whether init was ended for lack of memory. It must come before anything that removes the cgroup, and
// means something only when init has ended by itself.
func (i *Instance) noteOOM() {
	cgroup, before, ok := i.ledger.memory()
	if !ok {
		return
	}
	if kills, err := shimclient.OOMKills(cgroup); err != nil || kills <= before {
		return
	}
	i.ledger.recordOOM()
}

// tellOOM tells that init was ended for lack of memory, if it is known to have been.
func (i *Instance) tellOOM() { i.tellOOMIf(i.ledger.takeOOM(true)) }

func (i *Instance) tellOOMIf(due bool) {
	if due {
		i.m.publish(i.lasting(), runtime.TaskOOMEventTopic, &apievents.TaskOOM{ContainerID: i.id})
	}
}

// tellOOMOnce is tellOOM, unless this daemon has said so before.
func (i *Instance) tellOOMOnce() { i.tellOOMIf(i.ledger.takeOOM(false)) }

// tellOOMBeforeDelete is for a task that ended while there was no daemon, or so soon after that its clients may not
// have heard: its client may delete it, and the cgroup with it, long before the exit is told. CRI does so while it
// recovers what it knew.
func (i *Instance) tellOOMBeforeDelete() {
	e := i.ledger.exit("")
	if i.reading == nil || e == nil || e.Status != exitKilled || e.Told && e.Owed == 0 {
		return
	}
	i.noteOOM()
	i.tellOOMOnce()
}

// placeMemory records where it can be seen whether init is ended for lack of memory, once its pid is known to be its
// own.
func (i *Instance) placeMemory() {
	i.mu.Lock()
	p, pid := i.proc, i.ledger.unplacedLocked()
	i.mu.Unlock()
	if p == nil || pid == 0 {
		return
	}
	cgroup, kills := memoryOf(pid, p.Verified())
	i.ledger.placeMemory(pid, cgroup, kills)
}
