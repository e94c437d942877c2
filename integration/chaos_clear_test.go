// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// usedAfterClear is how many containers are used after a clearing, to see that their ids are free.
const usedAfterClear = 3

// clear deletes all tasks and checks that nothing is left of them, and that the daemon holds no more than at the
// beginning.
func (c *chaos) clear() {
	began := time.Now()
	c.note(nil, "clearing")
	c.counts.add("clear", nil)
	var wg sync.WaitGroup
	for i, s := range c.slots {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c.clearOne(i, s)
		}()
	}
	wg.Wait()
	c.settle("after clearing", c.check)
	for i := range usedAfterClear {
		c.use((c.round/clearEvery + i*3) % len(c.slots))
	}
	c.settle("after clearing", c.check)
	c.settle("after clearing", c.leftovers)
	c.closeClients()
	c.waitIdle()
	c.settle("after clearing", c.excess)
	c.openClients()
	for _, s := range c.slots {
		s.clear()
	}
	c.forget(began)
	c.mu.Lock()
	c.sessions, c.fulls = c.sessions[len(c.sessions)-1:], nil
	c.mu.Unlock()
}

// clearOne ends a task, as a patient client does.
func (c *chaos) clearOne(i int, s *slot) {
	sess := c.session()
	deadline := time.Now().Add(patience)
	for {
		for _, st := range []step{{op: "kill", slot: i, arg: int(unix.SIGKILL)}, {op: "delete", slot: i}} {
			err := c.do("clearing", sess, st)
			if st.op == "delete" && (err == nil || errdefs.IsNotFound(err)) {
				return
			}
			if time.Now().After(deadline) {
				c.fail(s, "cannot delete it: %v", err)
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// waitIdle waits until the Waits have been answered: all tasks are gone.
func (c *chaos) waitIdle() {
	done := make(chan struct{})
	go func() { c.sess.pending.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		for _, s := range c.slots {
			for _, x := range s.history() {
				if x.end.IsZero() && strings.Contains(x.op, "wait") && x.session == c.sess.number {
					c.fail(s, "a %s %s since %s is not answered, and there is no task", x.op, x.exec,
						x.begin.UTC().Format(stamp))
				}
			}
		}
		c.t.FailNow()
	}
}

// leftovers looks for what is left when there are no tasks.
func (c *chaos) leftovers() []complaint {
	var found []complaint
	add := func(what, path string) { found = append(found, complaint{nil, what + " " + path, false}) }
	for _, dir := range []struct{ what, pattern string }{
		{"a bundle", "state/io.containerd.runtime.v2.task/*/"},
		{"a work dir", "root/io.containerd.runtime.v2.task/*/"},
		{"a socket", "s/"}, {"a fifo", "fifo/"}, {"runc's state", "runc/*/"},
	} {
		for _, glob := range []string{"*", ".[!.]*"} {
			paths, _ := filepath.Glob(filepath.Join(c.Dir, dir.pattern) + "/" + glob) // well-formed
			for _, path := range paths {
				add("left: "+dir.what, path)
			}
		}
	}
	warm, _ := filepath.Glob(filepath.Join(c.Dir, "state/io.containerd.runtime.v2.task/._*")) // well-formed
	for _, path := range warm {
		add("left: the directory of a warm shim", path)
	}
	for name, f := range c.fakes {
		for _, path := range f.Sockets() {
			add("left: a socket of "+name, path)
		}
	}
	for _, p := range c.Processes() {
		add("left: process", p.String())
	}
	for _, p := range c.fakeProcs(shimtest.RoleDaemon, shimtest.RoleGuest, shimtest.RoleStart, shimtest.RoleDelete) {
		add("left: process", p.String())
	}
	for _, m := range c.bundleMounts() {
		add("left: mount", m)
	}
	for _, dir := range c.containerCgroups() {
		add("left: cgroup", dir)
	}
	return found
}

// bundleMounts lists the mounts below the daemon's directory, without the disk.
func (c *chaos) bundleMounts() []string {
	data, _ := os.ReadFile("/proc/self/mountinfo") // always there
	var list []string
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], c.Dir+"/") && f[4] != c.stateDir() {
			list = append(list, f[4])
		}
	}
	return list
}

// containerCgroups lists the cgroups of containers, in all hierarchies.
func (c *chaos) containerCgroups() []string {
	var list []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		roots, _ := filepath.Glob(pattern + c.Cgroup()) // well-formed
		for _, root := range roots {
			_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() && path != root {
					list = append(list, path)
				}
				return nil
			})
		}
	}
	return list
}

// holding is what the daemon holds.
type holding struct {
	fds        int
	goroutines []string // without those that answer the question
}

// rest waits until what the daemon holds stays the same for some time.
func (c *chaos) rest() holding {
	var last holding
	for equal := 0; equal < 5; time.Sleep(50 * time.Millisecond) {
		h := c.holding()
		if h.fds == last.fds && len(h.goroutines) == len(last.goroutines) {
			equal++
		} else {
			equal = 0
		}
		last = h
	}
	return last
}

func (c *chaos) holding() holding {
	// Before the profile, whose connection is one more.
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.Pid()))
	require.NoError(c.t, err)
	h := holding{fds: len(fds)}
	for _, block := range strings.Split(c.profile(), "\n\n") {
		head, _, _ := strings.Cut(block, "\n")
		if strings.HasPrefix(head, "goroutine profile") {
			_, block, _ = strings.Cut(block, "\n")
			head, _, _ = strings.Cut(block, "\n")
		}
		if n, err := strconv.Atoi(strings.Fields(head + " x")[0]); err == nil &&
			!strings.Contains(block, "net/http.(*conn") {
			for range n {
				h.goroutines = append(h.goroutines, block)
			}
		}
	}
	return h
}

// excess says what the daemon holds beyond the beginning.
func (c *chaos) excess() []complaint {
	h := c.holding()
	var found []complaint
	if h.fds > c.base.fds {
		found = append(found, complaint{nil, fmt.Sprintf("the daemon has %d open files, not %d", h.fds, c.base.fds),
			false})
	}
	if len(h.goroutines) > len(c.base.goroutines) {
		found = append(found, complaint{nil, fmt.Sprintf("the daemon has %d goroutines, not %d:\n%s", len(h.goroutines),
			len(c.base.goroutines),
			strings.Join(h.goroutines, "\n")), false})
	}
	return found
}

// profile is the daemon's goroutines.
func (c *chaos) profile() string {
	transport := &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(c.Dir, "d.sock"))
		}}
	hc := &http.Client{Transport: transport, Timeout: patience}
	resp, err := hc.Get("http://daemon/debug/pprof/goroutine?debug=1")
	require.NoError(c.t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	require.NoError(c.t, err)
	return string(data)
}
