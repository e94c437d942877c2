// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/shimclient"
)

// judgePid says what a pid that a shim told can be used for. The pid may be a guest's or one of another pid namespace,
// and then some process of this machine has the number by chance. Its start time, which makes it the name of one
// process, is kept (start != 0) only for the shim itself (some shims of VMs tell that) and for what descends from it;
// owned, fit to be signalled, are only the latter.
func (i *Instance) judgePid(pid uint32) (start uint64, owned bool) {
	p := i.process()
	if pid == 0 || p == nil {
		return 0, false
	}
	shim := p.Verified()
	if (shim == shimclient.ProcessID{}) {
		return 0, false
	}
	if int(pid) == shim.Pid {
		return shim.StartTime, false
	}
	id, err := shimclient.LookupProcess(int(pid))
	if err != nil || !id.DescendsFrom(shim) {
		return 0, false
	}
	return id.StartTime, true
}

// initGone tells whether the container's init is certainly gone: its exit is on record, or it is known and not there
// any more.
func (i *Instance) initGone() bool {
	if i.ledger.exit("") != nil {
		return true
	}
	pid := i.ledger.initProcess()
	return pid != (shimclient.ProcessID{}) && !pid.Alive()
}

// killInit ends the container's init without its shim. True when that was its init for certain, its alone, and it is
// ended.
func (i *Instance) killInit(ctx context.Context) bool {
	pid := i.ledger.initProcess()
	if (pid == shimclient.ProcessID{}) || i.sharesInit(uint32(pid.Pid)) {
		return false
	}
	if err := pid.Signal(syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("pid", pid.Pid).Error("cannot end a container without its shim")
		return false
	}
	// Who deletes next asks whether it is gone.
	wctx, cancel := timeout.WithContext(ctx, TimeoutCleanup)
	defer cancel()
	if err := pid.Wait(wctx); err != nil {
		log.G(ctx).WithError(err).WithField("pid", pid.Pid).Error("a container's init does not end at a SIGKILL")
		return false
	}
	log.G(ctx).WithField("pid", pid.Pid).Warn("ended a container's init without its shim")
	return true
}

// sharesInit tells whether another task of the same shim has the same pid, as in a VM, whose process stands for all
// containers in it.
func (i *Instance) sharesInit(pid uint32) bool {
	p := i.process()
	if p == nil {
		return false
	}
	for _, o := range instancesOf(p) {
		if o != i && o.ledger.pid() == pid {
			return true
		}
	}
	return false
}
