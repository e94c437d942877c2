// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

// step is a planned operation or fault.
type step struct {
	op    string
	slot  int
	arg   int           // a signal, an exit code, a number of pages: as op needs it
	pause time.Duration // before it
	// leave is when the caller leaves; 0: only when it is out of patience.
	leave time.Duration
}

// roundPlan is what happens in a round. It follows from the seed and the round's number alone.
type roundPlan struct {
	workers [][]step
	faults  []step
}

// weighted is a choice among operations.
type weighted []struct {
	op     string
	weight int
}

func (w weighted) pick(r *rand.Rand) string {
	sum := 0
	for _, x := range w {
		sum += x.weight
	}
	n := r.IntN(sum)
	for _, x := range w {
		if n -= x.weight; n < 0 {
			return x.op
		}
	}
	panic("unreachable")
}

// phase is how far a container has come if all goes well, which a plan is made for.
type phase int

const (
	absent phase = iota
	created
	started
	paused
	killed
)

// likely are the operations that mostly make sense in a phase.
var likely = map[phase]weighted{
	absent:  {{"create", 30}, {"state", 1}, {"delete", 1}, {"kill", 1}},
	created: {{"start", 20}, {"wait", 6}, {"state", 2}, {"kill", 3}, {"exec", 1}, {"delete", 2}},
	started: {{"exec", 8}, {"exec-kill", 4}, {"exec-wait", 4}, {"exec-delete", 2}, {"exec-state", 2}, {"wait", 5},
		{"state", 4},
		{"pids", 2}, {"metrics", 1}, {"list", 1}, {"pause", 3}, {"kill", 10}, {"delete", 2}, {"start", 1}},
	paused: {{"resume", 10}, {"kill", 2}, {"state", 2}, {"wait", 1}, {"exec", 1}, {"pids", 1}, {"pause", 1}},
	killed: {{"delete", 20}, {"wait", 6}, {"state", 4}, {"kill", 3}, {"list", 1}, {"exec", 1}, {"start", 1},
		{"create", 1}},
}

// anything is what is done in any phase now and then.
var anything = weighted{{"create", 4}, {"start", 3}, {"kill", 3}, {"delete", 3}, {"wait", 3}, {"state", 3}, {"exec", 2},
	{"pause", 1},
	{"resume", 1}, {"pids", 1}, {"metrics", 1}, {"list", 1}, {"exec-kill", 1}, {"exec-wait", 1}, {"exec-delete", 1}}

// harm is what goes wrong.
var harm = weighted{{"stall", 14}, {"continue", 8}, {"shim-kill", 8}, {"init-kill", 5}, {"cut", 8}, {"cut-events", 2},
	{"garbage", 3}, {"half-cut", 2},
	{"daemon-term", 4}, {"daemon-kill", 5}, {"disk-full", 5}, {"disk-empty", 4}, {"idle-kill", 6}, {"idle-stall", 4},
	{"spare-full", 3}, {"fake-drop", 4}, {"fake-die", 4}, {"fake-hang", 3},
	{"fake-error", 2}, {"unsocket", 6}, {"damage", 6}, {"hook", 8}, {"calm", 8}}

var (
	fakeMethods = []string{"State", "Create", "Start", "Delete", "Kill", "Exec", "Wait", "Connect", "Shutdown", "*"}
	killSignals = []unix.Signal{unix.SIGKILL, unix.SIGKILL, unix.SIGKILL, unix.SIGTERM, unix.SIGTERM, unix.SIGINT,
		unix.SIGUSR1, unix.SIGHUP}
)

// plan makes the plan of a round.
func (c *chaos) plan(round int) roundPlan {
	var p roundPlan
	for w := range chaosWorkers {
		p.workers = append(p.workers, planSteps(rand.New(rand.NewPCG(c.seed, uint64(round*100+w+1))), w, len(c.slots)))
	}
	p.faults = planFaults(rand.New(rand.NewPCG(c.seed, uint64(round*100))), len(c.slots))
	return p
}

// planSteps plans for one worker, which mostly minds its own containers.
func planSteps(r *rand.Rand, worker, slots int) []step {
	phases := map[int]phase{}
	var steps []step
	for range chaosSteps {
		if r.IntN(chaosSteps/2) == 0 {
			rush := planRush(r, worker, slots)
			for _, s := range rush {
				phases[s.slot] = absent
			}
			steps = append(steps, rush...)
			continue
		}
		s := step{slot: r.IntN(slots), pause: time.Duration(r.IntN(30)) * time.Millisecond}
		if r.IntN(10) > 0 {
			s.slot = s.slot/chaosWorkers*chaosWorkers + worker
			s.slot %= slots
		}
		s.op = likely[phases[s.slot]].pick(r)
		if r.IntN(12) == 0 {
			s.op = anything.pick(r)
		}
		switch s.op {
		case "kill":
			s.arg = int(killSignals[r.IntN(len(killSignals))])
		case "exec":
			s.arg = r.IntN(100) - 50 // negative: until it is killed
		}
		if n := r.IntN(100); n < 8 || s.op == "create" && n < 20 {
			s.leave = time.Duration(1+r.IntN(120)) * time.Millisecond
		}
		phases[s.slot] = advance(phases[s.slot], s.op)
		steps = append(steps, s)
	}
	return steps
}

// planRush plans two containers of a worker that come and go without a pause, over and over, so that one has the
// other's warm shim at once.
func planRush(r *rand.Rand, worker, slots int) []step {
	var steps []step
	for range 2 + r.IntN(3) {
		for _, slot := range []int{worker, (worker + chaosWorkers) % slots} {
			steps = append(steps, step{op: "create", slot: slot})
			if r.IntN(3) > 0 {
				steps = append(steps, step{op: "start", slot: slot},
					step{op: "kill", slot: slot, arg: int(unix.SIGKILL)})
			}
			steps = append(steps, step{op: "delete", slot: slot},
				step{op: "delete", slot: slot, pause: time.Duration(r.IntN(40)) * time.Millisecond})
		}
	}
	return steps
}

// advance is the phase after an operation that goes well.
func advance(p phase, op string) phase {
	switch {
	case op == "create" && p == absent:
		return created
	case op == "start" && p == created:
		return started
	case op == "pause" && p == started:
		return paused
	case op == "resume" && p == paused:
		return started
	case op == "kill" && p != absent:
		return killed
	case op == "delete" && (p == killed || p == created):
		return absent
	}
	return p
}

func planFaults(r *rand.Rand, slots int) []step {
	var faults []step
	for range 2 + r.IntN(chaosFaults-1) {
		s := step{op: harm.pick(r), slot: r.IntN(slots), arg: r.IntN(1 << 20),
			pause: time.Duration(r.IntN(600)) * time.Millisecond}
		faults = append(faults, s)
	}
	return faults
}
