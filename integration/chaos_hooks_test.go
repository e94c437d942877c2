// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient"
)

// hookDaemon is a process that a hook of a container has left behind: it has the token of the shim's launch, and is no
// affair of the daemon's, whatever becomes of the shim and of the containers that it serves later.
type hookDaemon struct {
	cmd  *exec.Cmd
	id   shimclient.ProcessID
	shim int
}

// leaveHook does what a hook does that starts a daemon: in the shim of a task that was created, and that has not gone
// by then. Not in a pod, where another container's create may be under way, which ends what began in its time if it
// fails.
func (c *chaos) leaveHook(s *slot) {
	if s.pod {
		return
	}
	for _, pid := range c.shims(s) {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil || !s.wasCreated() {
			return
		}
		token := launchMark(env)
		init := c.initOf(s)
		cmd := exec.Command("sleep", "100000")
		cmd.Env, cmd.Dir, cmd.SysProcAttr = []string{token}, "/", &unix.SysProcAttr{Setsid: true}
		if token == "" || !init.Alive() || cmd.Start() != nil {
			return
		}
		id, err := shimclient.LookupProcess(cmd.Process.Pid)
		if err != nil || !init.Alive() || !s.wasCreated() {
			// Another create may have the shim by now, and what began in that one's time is ended with it if it fails.
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return
		}
		c.hooks = append(c.hooks, hookDaemon{cmd, id, pid})
		c.note(s, "hook: process %d is left behind, with the token of shim %d", id.Pid, pid)
	}
}

// launchMark is the entry of a shim's environment by which what it runs is found; "": there is none.
func launchMark(env []byte) string {
	named := ""
	for entry := range bytes.SplitSeq(env, []byte{0}) {
		switch {
		case bytes.HasPrefix(entry, []byte(shimclient.TokenEnv+"=")):
			return string(entry)
		case bytes.HasPrefix(entry, []byte("OTEL_SERVICE_NAME=")):
			named = string(entry)
		}
	}
	return named
}

// wasCreated tells whether the last create of the container was answered, and well.
func (s *slot) wasCreated() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	created := false
	for _, x := range s.calls {
		if x.op == "create" {
			created = !x.end.IsZero() && x.err == nil
		}
	}
	return created
}

// initOf is the container's first process; zero when there is none.
func (c *chaos) initOf(s *slot) shimclient.ProcessID {
	data, err := os.ReadFile(filepath.Join(c.Bundle(testNS, s.id), "init.pid"))
	if err != nil {
		return shimclient.ProcessID{}
	}
	pid, _ := strconv.Atoi(string(bytes.TrimSpace(data)))
	id, err := shimclient.LookupProcess(pid)
	if err != nil {
		return shimclient.ProcessID{}
	}
	return id
}

// endHooks checks that nobody has ended what hooks left behind, and ends it.
func (c *chaos) endHooks() {
	for _, h := range c.hooks {
		if !h.id.Alive() {
			c.fail(nil, "process %d, which a hook left behind in shim %d, was ended", h.id.Pid, h.shim)
		}
	}
	c.killHooks()
}

func (c *chaos) killHooks() {
	for _, h := range c.hooks {
		_ = h.cmd.Process.Kill()
		_ = h.cmd.Wait()
	}
	c.hooks = nil
}
