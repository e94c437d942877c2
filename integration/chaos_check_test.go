// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/shimyard/shimyard/integration/internal/daemon"
)

// check looks at everything while nobody does anything.
func (c *chaos) check() []complaint {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), testNS), opPatience)
	defer cancel()
	sess := c.session()
	list, err := sess.calls.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return []complaint{{nil, fmt.Sprintf("List fails: %v", err), false}}
	}
	listed := map[string]*tasktypes.Process{}
	var found []complaint
	for _, p := range list.Tasks {
		listed[p.ID] = p
		if c.slotOf(p.ID) == nil {
			found = append(found, complaint{nil, "an unknown task is listed: " + p.ID, false})
		}
	}
	owners := c.processes()
	for id, procs := range owners {
		if listed[id] == nil {
			found = append(found, complaint{c.slotOf(id), fmt.Sprintf("no task, but processes (of %q): %v", id, procs),
				false})
		}
	}
	for _, s := range c.slots {
		p := listed[s.id]
		if p == nil {
			found = append(found, c.checkAbsent(s)...)
		} else {
			found = append(found, c.checkPresent(ctx, sess, s, p)...)
		}
		found = append(found, c.checkExits(s)...)
	}
	return found
}

// processes are all that belong to the daemon, by the id of their container; "": nobody knows whose. A shim is of all
// whose bundles name it. Warm ones on record that serve nobody are left out.
func (c *chaos) processes() map[string][]string {
	owners := map[string][]string{}
	shims := map[int]daemon.Shim{}
	for _, s := range c.Shims() {
		shims[s.Pid] = s
		for _, id := range c.ownersOf(s) {
			owners[id] = append(owners[id], s.String())
		}
	}
	for _, p := range c.Processes() {
		if _, known := shims[p.Pid]; known {
			continue
		}
		id := ""
		cgroup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.Pid))
		environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.Pid))
		for _, s := range c.slots {
			if strings.Contains(string(cgroup), c.cgroup(testNS, s.id)+"\n") ||
				strings.Contains("\x00"+string(environ), "\x00SHIMTEST_ID="+s.id+"\x00") {
				id = s.id
			}
		}
		if id == "" && p.Is("containerd-shim-") {
			continue // it has begun since
		}
		owners[id] = append(owners[id], p.String())
	}
	return owners
}

// ownersOf are the ids that a shim is of: those that it serves, else the one that it was started for.
func (c *chaos) ownersOf(s daemon.Shim) []string {
	var ids []string
	for _, id := range s.Serves {
		ids = append(ids, strings.TrimPrefix(id, testNS+"/"))
	}
	switch {
	case len(ids) > 0 || s.Idle:
		return ids
	case strings.HasPrefix(s.ID, "_"):
		return []string{""}
	}
	return []string{s.ID}
}

// checkAbsent looks at a container that has no task.
func (c *chaos) checkAbsent(s *slot) []complaint {
	var found []complaint
	add := func(final bool, format string, args ...any) {
		found = append(found, complaint{s, fmt.Sprintf(format, args...), final})
	}
	now := time.Now()
	if lost := s.mustOne(now, now, nil); lost != nil {
		add(false, "the task with pid %d is lost", lost.pid)
	}
	if exists(c.Bundle(testNS, s.id)) {
		add(false, "no task, but a bundle")
	}
	if exists(c.Dir, "root", "io.containerd.runtime.v2.task", testNS, s.id) {
		add(false, "no task, but a work dir")
	}
	if exists(c.RuncRoot(), testNS, s.id) {
		add(false, "no task, but runc's state")
	}
	for _, m := range c.bundleMounts() {
		if strings.HasPrefix(m, c.Bundle(testNS, s.id)+"/") {
			add(false, "no task, but a mount: %s", m)
		}
	}
	for _, dir := range c.containerCgroups() {
		if filepath.Base(dir) == testNS+"-"+s.id && !(s.createCut() && c.removeCgroup(s, dir)) {
			add(false, "no task, but a cgroup: %s", dir)
		}
	}
	return found
}

// createCut tells whether a Create was cut: the runc shim then kills runc half way, as ttrpc cancels the calls of a
// connection that is lost, and what runc has made of cgroups by then nobody knows of.
func (s *slot) createCut() bool {
	cut := false
	for _, x := range s.history() {
		cut = cut || x.op == "create" && x.err != nil || x.op == "cut" || x.op == "shim-kill"
	}
	return cut
}

// removeCgroup removes an empty cgroup.
func (c *chaos) removeCgroup(s *slot, dir string) bool {
	if os.Remove(dir) != nil {
		return false
	}
	c.counts.add("(cgroup left by runc)", nil)
	c.note(s, "a create that was cut has left the cgroup %s", dir)
	return true
}

// checkPresent looks at a container that has a task.
func (c *chaos) checkPresent(ctx context.Context, sess *session, s *slot, p *tasktypes.Process) []complaint {
	var found []complaint
	add := func(format string, args ...any) {
		found = append(found, complaint{s, fmt.Sprintf(format, args...), false})
	}
	now := time.Now()
	if lost := s.mustOne(now, now, nil); lost != nil && lost.pid != p.Pid {
		add("the task with pid %d is lost, there is one with pid %d", lost.pid, p.Pid)
	}
	if !s.mayHave(p.Pid) {
		add("nobody created the task with pid %d, or it was deleted", p.Pid)
	}
	if !exists(c.Bundle(testNS, s.id)) {
		add("a task, but no bundle")
	}
	if pids := c.shims(s); len(pids) != 1 {
		add("a task, but shims %v", pids)
	}
	r, err := sess.calls.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: s.id})
	if err != nil {
		add("State fails: %v", err)
		return found
	}
	runs := c.contains(s, int(p.Pid)) && !isZombie(int(p.Pid))
	for what, st := range map[string]tasktypes.Status{"List": p.Status, "State": r.Process.Status} {
		if says := st != tasktypes.Status_STOPPED; says != runs || st == tasktypes.Status_UNKNOWN {
			add("%s says %s, and pid %d runs: %t", what, st, p.Pid, runs)
		}
	}
	c.tellState(s, "", r.Process, sess)
	// It fails at once while the shim does not answer, which State does not.
	_, err = sess.calls.TaskService().ListPids(ctx, &tasks.ListPidsRequest{ContainerID: s.id})
	if err = nativeErrorOf(err); errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) {
		add("the shim is idle and not used: %v", err)
	}
	if at := s.killed(p.Pid); runs && at != nil {
		add("pid %d was killed at %s and runs", p.Pid, at.end.UTC().Format(stamp))
	}
	return found
}

func nativeErrorOf(err error) error {
	if err == nil {
		return nil
	}
	return nativeError(err)
}

func isZombie(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// mayHave tells whether a task with the pid may be there: a Create answered so or may have gone through unheard, and no
// Delete was answered with it.
func (s *slot) mayHave(pid uint32) bool {
	made := false
	for _, x := range s.history() {
		switch x.op {
		case "create":
			made = made || x.err == nil && x.pid == pid || x.err != nil && x.undecided()
		case "delete":
			if x.err == nil && x.pid == pid {
				return false
			}
		}
	}
	return made
}

// killed finds a SIGKILL that reached the task with the pid for certain; nil: none.
func (s *slot) killed(pid uint32) *call {
	var made *call
	for _, x := range s.history() {
		switch {
		case x.op == "create" && x.err == nil && x.pid == pid:
			made = &x
		case made != nil && x.op == "kill" && x.arg == 9 && x.err == nil && !x.end.IsZero() && x.begin.After(made.end):
			return &x
		}
	}
	return nil
}

// life is what is known of the exits of one process.
type life struct {
	exec  string
	pid   uint32
	told  []told
	first *told // by an event
}

// checkExits looks at what was told of exits.
func (c *chaos) checkExits(s *slot) []complaint {
	var found []complaint
	add := func(final bool, format string, args ...any) {
		found = append(found, complaint{s, fmt.Sprintf(format, args...), final})
	}
	all := s.allTold()
	for _, l := range lives(all) {
		if !s.wasStarted(l.exec, l.pid) {
			continue // runc says of those what it likes
		}
		codes := s.expected(l.exec)
		for _, x := range l.told {
			if (x.code != l.told[0].code || !x.at.Equal(l.told[0].at)) && !c.forgotten(l.told[0].heard, x.heard) {
				add(true, "different exits of %q: %s, and %s", l.exec, l.told[0], x)
			}
			if !codes[int(x.code)] {
				add(true, "the exit of %q is none of %v: %s", l.exec, codes, x)
			}
		}
		if l.first == nil && c.due(s, l) {
			add(false, "the exit of %q was not told by an event: %s", l.exec, l.told[0])
		}
	}
	found = append(found, c.checkOrder(s, all)...)
	return append(found, s.checkWaits(all)...)
}

// maxTold is how often an event may tell the same exit: the shim may repeat what it does not know to have arrived, and
// so may the daemon after a crash. A young daemon tells it three times more, as long as the task is there.
const maxTold = 4 + 3

// checkOrder looks for exits of execs that were told after that of their container, with nothing that could have
// delayed them.
func (c *chaos) checkOrder(s *slot, all []told) []complaint {
	var found []complaint
	ends, count := map[uint32]told{}, map[string]int{}
	for _, x := range all {
		if x.from != "event" {
			continue
		}
		if count[x.exec+x.String()]++; count[x.exec+x.String()] > maxTold {
			found = append(found, complaint{s,
				fmt.Sprintf("the exit of %q was told %d times: %s", x.exec, maxTold+1, x), true})
		}
		if x.exec == "" {
			if _, again := ends[x.pid]; !again {
				ends[x.pid] = x
			}
			continue
		}
		for _, end := range ends {
			if count[x.exec+x.String()] == 1 && s.execWas(x.exec, end) && c.followed(x.at, end.heard) &&
				!s.eventsCut() {
				found = append(found, complaint{s,
					fmt.Sprintf("the exit of exec %q was told after that of init: %s, %s", x.exec, x, end), true})
			}
		}
	}
	return found
}

// execWas tells whether an exec was one of the task that ended so.
func (s *slot) execWas(exec string, end told) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.execs[exec]
	if e == nil || e.started == nil {
		return false
	}
	for _, x := range s.calls {
		if x.op == "create" && x.err == nil && x.pid == end.pid {
			return x.end.Before(e.started.begin) && e.started.end.Before(end.at)
		}
	}
	return false
}

// eventsCut tells whether a connection was cut: shims then put what was not sent behind what came later.
func (s *slot) eventsCut() bool {
	return slices.ContainsFunc(s.history(), func(x call) bool { return x.op == "cut" })
}

// lives sorts what was told by processes. Waits do not say the pid.
func lives(all []told) []*life {
	type key struct {
		exec string
		pid  uint32
	}
	byKey := map[key]*life{}
	var list []*life
	for _, x := range all {
		if x.pid == 0 {
			continue
		}
		k := key{x.exec, x.pid}
		l := byKey[k]
		if l == nil {
			l = &life{exec: x.exec, pid: x.pid}
			byKey[k] = l
			list = append(list, l)
		}
		l.told = append(l.told, x)
		if x.from == "event" && l.first == nil {
			l.first = &l.told[len(l.told)-1]
		}
	}
	return list
}

// checkWaits looks for Waits that were answered with an exit that nobody else knows of.
func (s *slot) checkWaits(all []told) []complaint {
	var found []complaint
	for _, w := range all {
		if w.from != "wait" || !s.everStarted(w.exec) {
			continue
		}
		known, same := false, false
		for _, x := range all {
			if x.exec == w.exec && x.pid != 0 {
				known = known || x.at.Equal(w.at)
				same = same || x.at.Equal(w.at) && x.code == w.code
			}
		}
		if known && !same {
			found = append(found, complaint{s, fmt.Sprintf("a Wait for %q was answered differently: %s", w.exec, w),
				true})
		}
		if codes := s.expected(w.exec); !codes[int(w.code)] {
			found = append(found, complaint{s,
				fmt.Sprintf("a Wait for %q was answered with none of %v: %s", w.exec, codes, w), true})
		}
	}
	return found
}

// everStarted tells whether all processes under the name of init, or the exec, were started: runc says of one that was
// not what it likes.
func (s *slot) everStarted(exec string) bool {
	if exec != "" {
		return s.wasStarted(exec, 0)
	}
	for _, x := range s.history() {
		if x.op == "create" && (x.err != nil || !s.wasStarted("", x.pid)) {
			return false
		}
	}
	return true
}

// wasStarted tells whether a Start of the process was answered.
func (s *slot) wasStarted(exec string, pid uint32) bool {
	if exec != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.execs[exec] != nil && s.execs[exec].started != nil
	}
	for _, x := range s.history() {
		if x.op == "start" && x.exec == "" && x.err == nil && x.pid == pid {
			return true
		}
	}
	return false
}

// due tells whether an event must have told of the exit: it was followed all the time since.
func (c *chaos) due(s *slot, l *life) bool {
	now := time.Now()
	return c.followed(l.told[0].at, now)
}
