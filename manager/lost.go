// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"strconv"

	"github.com/containerd/log"

	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// A lost process is one that lives, as far as is known, and whose address is not known any more. It is like a process
// that does not answer, for ever: what is asked of it is answered from the record, or at once with an error that says
// why; calls to it go nowhere. The verdict on its death is by its pid, or by the traces of its launch.

// lose puts the instance behind a lost process, which is watched from now on. Instances with the same pid on record
// share one.
func (i *Instance) lose(why error) *shimproc.Process {
	log.G(i.context()).WithError(why).Error("cannot tell how to reach the shim of a bundle, leaving both alone")
	pid := i.ledger.recordedShim()
	name := i.namespace + "/" + i.id
	if pid != (shimclient.ProcessID{}) {
		name = "process " + strconv.Itoa(pid.Pid)
	}
	traced := !i.servedByAnother()
	launched := i.launchedHere()
	p := i.m.procs.AttachLost(behind{i}, name, why, traced, shimproc.Origin{Pid: pid, Launched: launched})
	i.announce() // whoever waits for the process that it had, or for it to have one, has another to look at
	return p
}

// loseStranger leaves a process that turned out not to be the instance's.
func (i *Instance) loseStranger(why error) {
	p := i.process()
	i.mu.Lock()
	i.guessed, i.mend = false, false
	i.mu.Unlock()
	if p.Remove(behind{i}) == 0 && p.Keeper() == nil {
		p.End()
	}
	i.lose(why)
}

// servedByAnother tells whether the shim was started for another instance, or for none: its launch is not traced in
// this one's bundle.
func (i *Instance) servedByAnother() bool {
	way := i.ledger.passage()
	return way.joined || way.warm != "" || i.leader() != ""
}
