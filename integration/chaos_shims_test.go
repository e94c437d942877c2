// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"slices"

	"golang.org/x/sys/unix"
)

// shims lists the shim processes of a container, helpers included; of all containers, and of none, for nil.
func (c *chaos) shims(s *slot) []int {
	var pids []int
	for _, x := range c.Shims() {
		if s == nil || slices.Contains(c.ownersOf(x), s.id) {
			pids = append(pids, x.Pid)
		}
	}
	return pids
}

// served are the containers that have a shim process now.
func (c *chaos) served(pid int) []*slot {
	var list []*slot
	for _, x := range c.Shims() {
		if x.Pid != pid {
			continue
		}
		for _, id := range c.ownersOf(x) {
			if s := c.slotOf(id); s != nil {
				list = append(list, s)
			}
		}
	}
	return list
}

// strike does something to a shim process, and notes it of each container that had the process at the time: a warm one
// may go from one to the next meanwhile.
func (c *chaos) strike(op string, pid int, do func()) {
	struck := map[*slot]*call{}
	note := func() {
		for _, s := range c.served(pid) {
			if struck[s] == nil {
				struck[s] = s.begin(&call{op: op})
			}
		}
	}
	// Before it happens, as whoever asks meanwhile has to know.
	note()
	if op == "shim-kill" {
		// Nobody who has it from here on is answered by it.
		_ = unix.Kill(pid, unix.SIGSTOP) // it may be gone
		note()
		do()
	} else {
		do()
		note()
	}
	for s, x := range struck {
		s.finish(x, nil)
		c.note(s, "%s: shim %d", op, pid)
	}
}

func (c *chaos) signalShims(s *slot, sig unix.Signal, op string) {
	for _, pid := range c.shims(s) {
		c.strike(op, pid, func() { _ = unix.Kill(pid, sig) }) // it may be gone
	}
}

// harmIdle does a fault to the warm shims that serve nobody, those that are being started included: to one of them, or
// to all.
func (c *chaos) harmIdle(f step) {
	var pids []int
	for _, x := range c.Shims() {
		if x.Idle {
			pids = append(pids, x.Pid)
		}
	}
	op, sig := "shim-kill", unix.SIGKILL
	switch {
	case f.op == "spare-full":
		c.fillDisk(f.arg) // so that those who need one have to start it
	case len(pids) == 0:
		return
	default:
		n := f.arg % len(pids)
		pids = pids[n : n+1+f.arg/64%(len(pids)-n)]
	}
	if f.op == "idle-stall" {
		op, sig = "stall", unix.SIGSTOP
	}
	c.note(nil, "%s: idle shims %v", f.op, pids)
	for _, pid := range pids {
		c.strike(op, pid, func() { _ = unix.Kill(pid, sig) }) // it may be gone
	}
}
