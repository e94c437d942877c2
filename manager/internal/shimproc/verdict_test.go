// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient"
)

// TestProofOfDeath: from what a process is known to be dead, and from what it is not. Each case is one that proves
// it, with one thing changed.
func TestProofOfDeath(t *testing.T) {
	launched := evidence{unix: true, local: true, launched: true, reach: shimclient.Refused, traces: gone}
	abstract := evidence{unix: true, launched: true, reach: shimclient.Refused, overdue: true, traces: gone}
	foreign := evidence{unix: true, local: true, reach: shimclient.Refused, overdue: true, traces: gone}
	vsock := evidence{reach: shimclient.Unknown, overdue: true, traces: gone}
	lost := evidence{lost: true, traced: true, launched: true, overdue: true, traces: gone}
	hiding := evidence{unix: true, local: true, launched: true, reach: shimclient.Refused, overdue: true,
		traces: hidden}
	for _, c := range []struct {
		name   string
		base   evidence
		change func(*evidence)
		want   bool
	}{
		{"the verified pid is gone", evidence{pid: gone}, nil, true},
		{"and another process listens at its address", evidence{pid: gone, unix: true, reach: shimclient.Reachable},
			nil,
			true},
		{"the verified pid lives, whatever else is gone", launched,
			func(e *evidence) { e.pid, e.overdue = alive, true }, false},
		{"nothing is known", evidence{}, nil, false},

		{"launched, refused, no trace", launched, nil, true},
		{"launched, and something listens", launched, func(e *evidence) { e.reach = shimclient.Reachable }, false},
		{"launched, and it cannot be told whether something listens", launched,
			func(e *evidence) { e.reach = shimclient.Unknown }, false},
		{"that, for long", launched, func(e *evidence) { e.reach, e.overdue = shimclient.Unknown, true }, false},
		{"launched, and a process of it lives", launched, func(e *evidence) { e.traces = alive }, false},
		{"launched, and the look for its processes has failed", launched, func(e *evidence) { e.traces = unseen },
			false},
		{"that, for long", launched, func(e *evidence) { e.traces, e.overdue = unseen, true }, false},

		{"an abstract socket, refused for long", abstract, nil, true},
		{"an abstract socket, refused at first", abstract, func(e *evidence) { e.overdue = false }, false},
		{"an abstract socket, and a process of it lives", abstract, func(e *evidence) { e.traces = alive }, false},

		{"not launched here, refused for long", foreign, nil, true},
		{"not launched here, refused at first", foreign, func(e *evidence) { e.overdue = false }, false},
		{"not launched here, and something listens", foreign, func(e *evidence) { e.reach = shimclient.Reachable },
			false},

		{"a VM's, out of reach for long", vsock, nil, true},
		{"a VM's, out of reach at first", vsock, func(e *evidence) { e.overdue = false }, false},
		{"a VM's, and something listens", vsock, func(e *evidence) { e.reach = shimclient.Reachable }, false},
		{"a VM's, and a process of it lives", vsock, func(e *evidence) { e.traces = alive }, false},

		{"without an address, no trace", lost, nil, true},
		{"without an address, and its launch is not on record", lost, func(e *evidence) { e.traced = false }, false},
		{"without an address, and a process of it lives", lost, func(e *evidence) { e.traces = alive }, false},

		{"where processes cannot be looked at, refused for long", hiding, nil, true},
		{"where processes cannot be looked at, refused at first", hiding, func(e *evidence) { e.overdue = false },
			false},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := c.base
			if c.change != nil {
				c.change(&e)
			}
			require.Equal(t, c.want, e.proof() != "", "%+v", e)
		})
	}
}

// TestIsOfShimsAge: a container that began in the tick in which its shim answered is not taken for the shim, whose death
// would never be noticed; nor is the shim taken for a container.
func TestIsOfShimsAge(t *testing.T) {
	for name, c := range map[string]struct {
		start, answered uint64
		told, want      bool
	}{
		"before the answer":                         {start: 9, answered: 10, want: true},
		"before the answer, with a container's pid": {start: 9, answered: 10, told: true, want: true},
		"in the tick of the answer":                 {start: 10, answered: 10, want: true},
		"a container in the tick of the answer":     {start: 10, answered: 10, told: true},
		"after the answer":                          {start: 11, answered: 10},
		"the answer is not known":                   {start: 11, want: true},
		"a container, the answer is not known":      {start: 11, told: true},
	} {
		t.Run(name, func(t *testing.T) {
			runs := func(shimclient.ProcessID) bool { return c.told }
			require.Equal(t, c.want, IsOfShimsAge(shimclient.ProcessID{Pid: 1, StartTime: c.start}, c.answered, runs))
		})
	}
}
