// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// slot is a container whose tasks come and go. All of its operations and all that was heard of it are kept from one
// clearing to the next.
type slot struct {
	id     string
	fake   string // the kind of its fake shim; "": runc
	pod    bool   // it shares its shim with others
	rootfs []*types.Mount
	// code is what its process exits with by itself; negative: it does not.
	code int

	mu    sync.Mutex // guards what follows
	calls []*call
	told  []told
	execs map[string]*execution
	last  string // the exec that was started last
}

// call is an operation as it was done. Those that harm the shim from outside are calls as well.
type call struct {
	op         string
	arg        int
	exec       string
	begin, end time.Time // end is zero while it is under way
	err        error
	pid        uint32 // that Create and Delete answered
	session    int
}

// execution is a further process.
type execution struct {
	code    int // negative: it does not end by itself
	started *call
}

// told is an exit as somebody was told of it.
type told struct {
	from    string
	exec    string
	pid     uint32 // 0: not said
	code    uint32
	at      time.Time
	heard   time.Time
	session int
}

func (x told) String() string {
	return fmt.Sprintf("%s: pid %d, code %d, at %s", x.from, x.pid, x.code, x.at.Format(stamp))
}

// makeSlots makes the containers: of each two one that goes by signals, and one that ends by itself.
func (c *chaos) makeSlots() {
	kinds := map[string]int{}
	if strings.Contains(*chaosWith, "runc") {
		kinds[""] = 6
	}
	for name := range c.fakes {
		kinds[name] = 2
	}
	var names []string
	for name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names) // the plan goes by the order
	for _, name := range names {
		for i := range kinds[name] {
			c.slots = append(c.slots, c.makeSlot(name, len(c.slots), i%2 == 1))
		}
	}
	if strings.Contains(*chaosWith, "runc") {
		// A pod: their creates are given up in a shim that serves the others, and what befalls it befalls them all.
		for i := range 3 {
			c.slots = append(c.slots, c.makeSlot("", len(c.slots), i == 2, inGroup("pod")))
		}
	}
}

func (c *chaos) makeSlot(kind string, number int, brief bool, opts ...setupOpt) *slot {
	s := &slot{id: fmt.Sprintf("c%d", number), fake: kind, pod: len(opts) > 0, code: -1, execs: map[string]*execution{}}
	if brief {
		s.code = 50 + number
	}
	switch {
	case kind != "" && brief:
		opts = append(opts, spec("exit-after", "100", fmt.Sprint(s.code)), fake(c.fakes[kind]))
	case kind != "":
		opts = append(opts, spec("sleep"), fake(c.fakes[kind]))
	case brief:
		opts = append(opts, shell(fmt.Sprintf("sleep 0.1; exit %d", s.code)))
	default:
		opts = append(opts, shell(`trap 'exit 31' HUP; trap 'exit 32' INT; trap 'exit 40' USR1; trap 'exit 45' TERM;
			while :; do sleep 1000 & wait $!; done`))
	}
	c.create(s.id, opts...)
	if kind == "" {
		mounts, err := c.Client().SnapshotService(snapshoter).Mounts(c.ctx, s.id)
		require.NoError(c.t, err)
		for _, m := range mounts {
			s.rootfs = append(s.rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target,
				Options: m.Options})
		}
	}
	return s
}

// begin notes that an operation begins.
func (s *slot) begin(c *call) *call {
	c.begin = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, c)
	return c
}

func (s *slot) finish(c *call, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.end, c.err = time.Now(), err
}

// history is a copy of what was done.
func (s *slot) history() []call {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]call, len(s.calls))
	for i, c := range s.calls {
		list[i] = *c
	}
	return list
}

func (s *slot) allTold() []told {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.told)
}

// clear forgets; there is no task.
func (s *slot) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls, s.told, s.execs, s.last = nil, nil, map[string]*execution{}, ""
}

func (c *chaos) slotOf(id string) *slot {
	for _, s := range c.slots {
		if s.id == id {
			return s
		}
	}
	return nil
}

// tell keeps an exit that somebody was told of.
func (c *chaos) tell(id string, x told) {
	s := c.slotOf(id)
	if s == nil {
		return
	}
	x.heard = time.Now()
	s.mu.Lock()
	s.told = append(s.told, x)
	s.mu.Unlock()
	c.note(s, "told of the exit of %q by %s", x.exec, x)
}

// undecided tells whether a call that failed may have had its effect all the same.
func (x *call) undecided() bool {
	return x.end.IsZero() || x.err != nil && !errdefs.IsAlreadyExists(x.err) && !x.refused()
}

// refused tells whether a Delete was refused since there is a process: shims have no class for that.
func (x *call) refused() bool {
	return x.op == "delete" && x.err != nil && strings.Contains(x.err.Error(), "cannot delete a ")
}

// ends tells whether the call may have ended the task with the pid, or its shim.
func (x *call) ends(pid uint32) bool {
	switch x.op {
	case "shim-kill":
		return true
	case "delete":
		return x.err == nil && !x.end.IsZero() && x.pid == pid || x.undecided()
	}
	return false
}

// must tells whether the task that a Create answered with has to be there from one time to another, by all that was
// done. other is a call that does not count.
func (s *slot) must(created *call, from, to time.Time, other *call) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if created.op != "create" || created.end.IsZero() || created.err != nil || created.end.After(from) {
		return false
	}
	for _, x := range s.calls {
		if x != other && x.ends(created.pid) && x.begin.Before(to) && (x.end.IsZero() || x.end.After(created.begin)) {
			return false
		}
	}
	return true
}

// mustOne finds a task that has to be there from one time to another.
func (s *slot) mustOne(from, to time.Time, other *call) *call {
	s.mu.Lock()
	calls := slices.Clone(s.calls)
	s.mu.Unlock()
	for _, x := range calls {
		if x != other && s.must(x, from, to, other) {
			return x
		}
	}
	return nil
}

// expected lists the codes that the exit of init, or of an exec, may have.
func (s *slot) expected(exec string) map[int]bool {
	codes := map[int]bool{}
	s.mu.Lock()
	defer s.mu.Unlock()
	if exec == "" && s.code >= 0 {
		codes[s.code] = true
	}
	if e := s.execs[exec]; e != nil {
		codes[137] = true // with its container
		if e.code >= 0 {
			codes[e.code] = true
		}
	}
	for _, x := range s.calls {
		switch {
		case x.op == "kill" && exec == "":
			codes[128+x.arg], codes[30+x.arg] = true, true // its own way, and that of the trap
			codes[2] = true                                // that of runc's init, where it is still that
		case x.op == "init-kill":
			codes[137] = true
		case x.op == "shim-kill":
			codes[137], codes[255] = true, true
		}
	}
	return codes
}

func exists(path ...string) bool {
	_, err := os.Lstat(filepath.Join(path...))
	return err == nil
}
