// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	tasktypes "github.com/containerd/containerd/api/types/task"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// Foreign is what a bundle of stock containerd tells of its task: init.pid, written by the runc shim.
func Foreign(b *bundle.Bundle) *bundle.TaskState {
	pid, start := foreignPid(b)
	if pid == 0 {
		return &bundle.TaskState{}
	}
	return &bundle.TaskState{Status: tasktypes.Status_RUNNING.String(), Pid: uint32(pid), PidStart: start}
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
