// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// inflict does a fault. Only the test's own goroutine does.
func (c *chaos) inflict(f step) {
	s := c.slots[f.slot]
	if slices.Contains(strings.Split(*chaosSkip, ","), f.op) {
		return
	}
	c.counts.add(f.op, nil)
	switch f.op {
	case "daemon-term":
		c.note(nil, "daemon is told to end")
		c.restart(ends["stopped"], f)
	case "daemon-kill":
		c.note(nil, "daemon is killed")
		c.restart(ends["killed"], f)
	case "damage":
		c.damageFiles(f)
	case "disk-full":
		c.fillDisk(f.arg)
	case "disk-empty", "calm":
		c.emptyDisk()
	case "stall":
		c.signalShims(s, unix.SIGSTOP, f.op)
	case "continue":
		c.signalShims(s, unix.SIGCONT, f.op)
	case "shim-kill":
		c.signalShims(s, unix.SIGKILL, f.op)
	case "idle-kill", "idle-stall", "spare-full":
		c.harmIdle(f)
	case "init-kill":
		c.killInit(s)
	case "hook":
		c.leaveHook(s)
	case "unsocket":
		c.hideSockets(s)
	case "cut", "half-cut", "garbage", "cut-events":
		c.cut(s, f)
	default:
		c.harmFake(s, f)
	}
}

// restart ends the daemon, and starts it again, at once or a little later, also with a full disk.
func (c *chaos) restart(end func(*node), f step) {
	c.endDaemon(end)
	time.Sleep(time.Duration(f.arg%4) * 100 * time.Millisecond)
	switch f.arg / 16 % 4 {
	case 0:
		c.fillDisk(f.arg / 64)
	case 1, 2:
		c.emptyDisk()
	}
	c.Run()
	c.open()
}

// continueAll wakes every shim that was stalled.
func (c *chaos) continueAll() {
	for _, pid := range c.shims(nil) {
		_ = unix.Kill(pid, unix.SIGCONT) // it may be gone
	}
}

// killInit kills a container's init from outside.
func (c *chaos) killInit(s *slot) {
	data, err := os.ReadFile(filepath.Join(c.Bundle(testNS, s.id), "init.pid"))
	pid, perr := strconv.Atoi(string(bytes.TrimSpace(data)))
	if err != nil || perr != nil || !c.contains(s, pid) {
		return
	}
	x := s.begin(&call{op: "init-kill"})
	_ = unix.Kill(pid, unix.SIGKILL) // it may be gone
	s.finish(x, nil)
	c.note(s, "init-kill: pid %d", pid)
}

// contains tells whether a process is of a container.
func (c *chaos) contains(s *slot, pid int) bool {
	for _, p := range c.fakeProcs(shimtest.RoleGuest) {
		if p.Pid == pid {
			return p.ID == s.id
		}
	}
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	return err == nil && bytes.Contains(append(data, '\n'), []byte(c.cgroup(testNS, s.id)+"\n"))
}

func (c *chaos) fakeProcs(roles ...string) []shimtest.Proc {
	var all []shimtest.Proc
	for _, f := range c.fakes {
		all = append(all, f.Procs(roles...)...)
	}
	return all
}

// fillDisk leaves a few pages, or a few inodes, of the state directory's file system.
func (c *chaos) fillDisk(arg int) {
	c.emptyDisk()
	leave := arg % 40
	if arg%7 == 0 {
		leave = 0
	}
	var st unix.Statfs_t
	if err := unix.Statfs(c.stateDir(), &st); err != nil {
		c.fail(nil, "cannot look at the disk: %v", err)
		return
	}
	dir := filepath.Join(c.stateDir(), "filling")
	_ = os.MkdirAll(dir, 0o700)
	if arg%5 == 0 {
		for i := range max(0, int(st.Ffree)-leave-2) {
			f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
			if err != nil {
				break // it is full already
			}
			f.Close()
		}
		c.diskFull(fmt.Sprintf("%d inodes", leave))
		return
	}
	blocks := max(0, int64(st.Bavail)-int64(leave))
	// It may be full before, as others write meanwhile.
	_ = os.WriteFile(filepath.Join(dir, "blocks"), make([]byte, blocks*st.Bsize), 0o600)
	c.diskFull(fmt.Sprintf("%d pages", leave))
}

// span is a time during which the disk was full; to is zero while it is.
type span struct{ from, to time.Time }

func (c *chaos) diskFull(but string) {
	c.fulls = append(c.fulls, span{from: time.Now()})
	c.note(nil, "disk is full but for %s", but)
}

func (c *chaos) emptyDisk() {
	dir := filepath.Join(c.stateDir(), "filling")
	if exists(dir) {
		_ = os.RemoveAll(dir) // what stays is tried again
		if n := len(c.fulls); n > 0 {
			c.fulls[n-1].to = time.Now()
		}
		c.note(nil, "disk has space")
	}
}

// recordGrace is how long after a full disk the daemon may take to write down what it could not.
const recordGrace = 1500 * time.Millisecond

// forgotten tells whether the daemon cannot know what it knew: it ended in between, and the disk was full until then.
func (c *chaos) forgotten(from, to time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		for _, f := range c.fulls {
			if !s.ended.IsZero() && s.ended.After(from) && s.ended.Before(to) &&
				f.from.Before(s.ended) && f.to.After(from) && f.to.After(s.ended.Add(-recordGrace)) {
				return true
			}
		}
	}
	return false
}

// harmFake gives the fake shims of one kind a rule for the container, where it is theirs.
func (c *chaos) harmFake(s *slot, f step) {
	fake := c.fakes[s.fake]
	if fake == nil {
		return
	}
	r := shimtest.Rule{
		Name: "chaos" + strconv.Itoa(f.arg), Method: fakeMethods[f.arg%len(fakeMethods)], ID: s.id, Times: 1,
		After: f.arg/16%2 == 0, Skip: f.arg / 32 % 3,
	}
	switch f.op {
	case "fake-drop":
		r.Drop = true
	case "fake-die":
		r.Die = true
		// It may die at any time from now on.
		s.begin(&call{op: "shim-kill"})
	case "fake-hang":
		r.Delay = time.Duration(f.arg%3000) * time.Millisecond
	case "fake-error":
		r.Code, r.Message = "Unknown", "an error on command"
		if r.Method == "Wait" || r.Method == "*" || r.After {
			return // an error that is said of what was done is a lie
		}
	}
	fake.Update(func(sc *shimtest.Scenario) { sc.Rules = append(sc.Rules, r) })
	c.note(s, "%s: %+v", f.op, r)
}
