// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/daemon"
)

// keepIdle starts the daemon anew as one that keeps idle shims for so long.
func (n *node) keepIdle(idle string) {
	n.t.Helper()
	n.Stop()
	n.Reconfigure(withIdle(idle))
	n.Run()
}

func withIdle(idle string) change { return func(o *daemon.Options) { o.WarmIdle = idle } }

// forGood is longer than any test.
const forGood = "1h"

// isWarm tells whether a shim was started for no container in particular.
func isWarm(s daemon.Shim) bool { return strings.HasPrefix(s.ID, "_") }

func pidsOf(shims []daemon.Shim) []int {
	var pids []int
	for _, s := range shims {
		pids = append(pids, s.Pid)
	}
	slices.Sort(pids)
	return pids
}

// awaitIdle waits until so many shims wait for a task and none is being started.
func (n *node) awaitIdle(count int) []daemon.Shim {
	n.t.Helper()
	var idle []daemon.Shim
	require.Eventually(n.t, func() bool {
		idle = n.idleShims()
		helper := slices.ContainsFunc(idle, func(s daemon.Shim) bool { return s.Helper })
		return len(idle) >= count && !helper && n.Inside("(*pool).fill") == 0
	}, patience, tick, "there are not %d idle shims", count)
	return idle
}

// awaitTakenOver waits until a daemon has seen to all warm shims that it found.
func (n *node) awaitTakenOver() {
	n.t.Helper()
	require.Eventually(n.t, func() bool {
		return n.Inside("(*ShimManager).restore") == 0 && n.Inside("(*warmShim).takeOver") == 0
	}, patience, tick, "the warm shims are not taken over")
}

// What one container has left in good order the next one takes, under another id too. Idle shims end with the idle
// time, or with the daemon that is told to end.
func TestShimServesAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.keepIdle(forGood)
	j := n.run("one", forever())
	first := n.shimOf(testNS, "one")
	require.True(t, isWarm(first), "%v", first)
	j.finish()
	require.Contains(t, pidsOf(n.awaitIdle(1)), first.Pid)
	n.awaitIdle(2) // the one that was started for the next
	for i := range 5 {
		id := fmt.Sprint("next-", i)
		j := n.run(id, obedient(20+i))
		require.Equal(t, []string{testNS + "/" + id}, n.shimOf(testNS, id).Serves)
		require.Equal(t, first.Pid, n.shimPid(testNS, id), "the one that was used last is used first")
		j.obey(uint32(20 + i))
	}
	n.Stop()
	require.Empty(t, n.Shims(), "a daemon that is told to end ends what is idle")
	n.Reconfigure(withIdle(warmIdle))
	n.Run()
	n.run("last", forever()).finish()
	n.awaitNoIdle()
}

// The clean end of the daemon in the middle of creates and deletes leaves no shim that serves nobody.
func TestStopAmidRecycling(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.AllowEmptyCgroups()
	n.keepIdle(forGood)
	for round := range 4 {
		var g errgroup.Group
		begun := make(chan struct{}, 4)
		for i := range 4 {
			b := n.create(fmt.Sprintf("amid-%d-%d", round, i), forever())
			g.Go(func() error {
				for k := 0; ; k++ {
					if err := b.round(); err != nil {
						return nil // the daemon is gone
					}
					if k == 1 {
						begun <- struct{}{}
					}
				}
			})
		}
		for range 4 {
			<-begun
		}
		n.Stop()
		require.NoError(t, g.Wait())
		idle := slices.DeleteFunc(n.idleShims(), func(s daemon.Shim) bool { return s.Helper })
		require.Empty(t, idle, "idle shims stay when the daemon has ended in good order")
		n.Run()
		n.deleteEverything()
	}
	n.keepIdle(warmIdle)
}

// A daemon that was killed leaves its idle shims to the next one, which uses them.
func TestIdleShimsOverCrash(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.keepIdle(forGood)
	n.run("one", forever()).finish()
	before := pidsOf(n.awaitIdle(2))
	n.Kill()
	require.Equal(t, before, pidsOf(n.idleShims()))
	n.Run()
	n.awaitTakenOver()
	j := n.run("two", obedient(7))
	require.Contains(t, before, n.shimPid(testNS, "two"))
	require.Equal(t, len(before), len(n.Shims()), "no further one was needed")
	j.obey(7)
	// One that died meanwhile, and one that stalls, are nobody's loss.
	n.Kill()
	pids := pidsOf(n.idleShims())
	require.NoError(t, unix.Kill(pids[0], unix.SIGKILL))
	require.NoError(t, unix.Kill(pids[1], unix.SIGSTOP))
	n.Run()
	n.run("three", obedient(8)).obey(8)
	require.NoError(t, unix.Kill(pids[1], unix.SIGCONT))
	n.keepIdle(warmIdle)
}

// Idle shims that are killed or stalled cost no create.
func TestIdleShimsHarmed(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.keepIdle(forGood)
	n.run("one", forever()).finish()
	for i, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGKILL} {
		for _, pid := range pidsOf(n.awaitIdle(1)) {
			require.NoError(t, unix.Kill(pid, sig))
		}
		id := fmt.Sprint("after-", i)
		n.run(id, obedient(30+i)).obey(uint32(30 + i))
	}
	n.keepIdle(warmIdle)
}

// A container's shim is dialled by the name that it would have if it had been started for the container, as `ctr shim`
// does.
func TestShimByName(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ctr := tool(t, kit.Ctr)
	address, err := shim.CreateSocketAddress(n.ctx, n.SocketDir(), n.Address(), "named", false)
	require.NoError(t, err)
	look := func() string {
		out, err := exec.Command(ctr, "-a", n.Address(), "-n", testNS, "shim", "--shim-address", address, "--id",
			"named", "state").CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	for range 2 { // the id again
		j := n.run("named", forever())
		require.True(t, isWarm(n.shimOf(testNS, "named")))
		require.Contains(t, look(), fmt.Sprintf(`"pid": %d`, j.Pid()))
		n.Kill()
		n.Run()
		require.Contains(t, look(), fmt.Sprintf(`"pid": %d`, j.Pid()))
		n.taskOf("named").finish()
		_, err := os.Lstat(strings.TrimPrefix(address, "unix://"))
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}

// The shim's binary is replaced under the pool: who comes next has the new one, and the old ones go.
func TestShimUpgraded(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir, path := privateShim(t)
	n := newNode(t, func(o *daemon.Options) { o.Path = []string{dir} })
	kept := n.run("kept", obedient(7))
	n.run("gone", forever()).finish()
	old, err := os.Stat(path)
	require.NoError(t, err)
	copyFile(t, kit.shim, path+".new")
	require.NoError(t, os.Rename(path+".new", path))
	fresh, err := os.Stat(path)
	require.NoError(t, err)

	runsFile := func(pid int, file os.FileInfo) bool {
		exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
		return err == nil && os.SameFile(exe, file)
	}
	j := n.run("new", obedient(8))
	require.True(t, runsFile(n.shimPid(testNS, "new"), fresh), "the old binary serves a new container")
	require.True(t, runsFile(n.shimPid(testNS, "kept"), old))
	kept.obey(7)
	require.Eventually(t, func() bool {
		return !slices.ContainsFunc(n.Shims(), func(s daemon.Shim) bool { return runsFile(s.Pid, old) })
	}, patience, tick, "shims of the old binary stay")
	j.obey(8)
}

// privateShim copies the shim into a directory of the test, with runc beside it.
func privateShim(t *testing.T) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	path = filepath.Join(dir, filepath.Base(kit.shim))
	copyFile(t, kit.shim, path)
	require.NoError(t, os.Symlink(kit.runc, filepath.Join(dir, filepath.Base(kit.runc))))
	return dir, path
}

// Once there are shims to take, containers come and go without an exec of the shim's binary.
func TestNoExecInSteadyState(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir, path := privateShim(t)
	n := newNode(t, func(o *daemon.Options) { o.Path = []string{dir} })
	n.keepIdle(forGood)
	// An exec opens the file.
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, path, unix.IN_OPEN)
	require.NoError(t, err)
	opened := func() bool {
		n, err := unix.Read(fd, make([]byte, 4096))
		return err == nil && n > 0
	}
	n.run("first", forever()).finish()
	before := pidsOf(n.awaitIdle(2))
	require.True(t, opened(), "an exec is not seen")
	for opened() {
	}
	b := n.create("steady", forever())
	for range 10 {
		require.NoError(t, b.round())
	}
	b.remove()
	require.False(t, opened(), "the shim's binary was run")
	require.Equal(t, before, pidsOf(n.Shims()))
	n.keepIdle(warmIdle)
}

// A shim that is to be in a cgroup of its own, and those of groups, are not of the pool.
func TestNotOfThePool(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	path := filepath.Join(n.Cgroup(), "shims")
	makeCgroup(t, path)
	j := n.run("apart", forever(), withOptions(func(o *options.Options) { o.ShimCgroup = path }))
	s := n.shimOf(testNS, "apart")
	require.Equal(t, "apart", s.ID)
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", s.Pid))
	require.NoError(t, err)
	require.Contains(t, string(data), ":"+path+"\n")
	j.finish()
	require.Eventually(t, func() bool { return !slices.Contains(pidsOf(n.Shims()), s.Pid) }, patience, tick,
		"it is used again")

	one, two := n.run("one", forever(), inGroup("g")), n.run("two", forever(), inGroup("g"))
	require.Equal(t, []string{testNS + "/one", testNS + "/two"}, n.shimOf(testNS, "one").Serves)
	require.False(t, isWarm(n.shimOf(testNS, "two")))
	one.finish() // whose start made the shim
	two.finish()
}

// The config's cgroup is that of all shims of a family whose clients name none.
func TestShimCgroupOfConfig(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	path := filepath.Join(n.Cgroup(), "shims")
	makeCgroup(t, path)
	n.Stop()
	n.Reconfigure(withShimConfig("\n[plugins.'io.containerd.shim.v1.manager'.runtimes.'io.containerd.runc.*']\nshim_cgroup = '" + path + "'\n"))
	n.Run()
	j := n.run("placed", forever())
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", n.shimPid(testNS, "placed")))
	require.NoError(t, err)
	require.Contains(t, string(data), ":"+path+"\n")
	j.finish()
}

// withShare makes so many containers share a shim.
func withShare(count int) change {
	return withShimConfig(fmt.Sprintf("\n[plugins.'io.containerd.shim.v1.manager'.runtimes.'io.containerd.runc.v2']\nshare = %d\n", count))
}

// Containers that share a shim by the config: its death ends them all, and each is told once.
func TestSharedShimKilled(t *testing.T) {
	t.Parallel()
	const count = 8
	n := newNode(t, withShare(count))
	log := n.watch()
	var all []*job
	for i := range count - 1 {
		all = append(all, n.run(fmt.Sprint("shared-", i), forever()))
	}
	stopped := n.create("stopped", shell("exit 7")).newTask()
	e := stopped.wait()
	stopped.start()
	require.EqualValues(t, 7, e.code())
	log.waitFor("/tasks/exit", "stopped")
	s := n.shimOf(testNS, "shared-0")
	require.Len(t, s.Serves, count, "%v", s)
	beyond := n.run("beyond", obedient(9))
	require.NotEqual(t, s.Pid, n.shimPid(testNS, "beyond"))

	var exits []*exit
	for _, j := range all {
		exits = append(exits, j.waiting())
	}
	require.NoError(t, unix.Kill(s.Pid, unix.SIGKILL))
	for i, e := range exits {
		require.EqualValues(t, 137, e.code(), "%d", i)
	}
	for _, j := range append(all, stopped) {
		log.waitFor("/tasks/delete", j.ID())
		j.b.awaitGone()
		j.b.remove()
	}
	n.stays("each is told once", func() bool {
		return !slices.ContainsFunc(append(all, stopped), func(j *job) bool {
			return log.count("/tasks/exit", j.ID()) != 1 || log.count("/tasks/delete", j.ID()) != 1
		})
	})
	for _, j := range append(all, stopped) {
		want := uint32(137)
		if j == stopped {
			want = 7
		}
		for _, x := range log.of(j.ID()) {
			if x.exit != nil {
				require.Equal(t, want, x.exit.ExitStatus, j.ID())
				require.Equal(t, j.Pid(), x.exit.Pid, j.ID())
			}
			if x.deleted != nil {
				require.Equal(t, want, x.deleted.ExitStatus, j.ID())
			}
		}
	}
	beyond.obey(9)
}

// Containers that share a shim come and go on their own, over restarts too.
func TestSharedShim(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, withShare(4))
			for i := range 4 {
				n.run(fmt.Sprint("shared-", i), obedient(40+i))
			}
			pid := n.shimPid(testNS, "shared-0")
			require.Len(t, n.shims(), 1)
			n.taskOf("shared-1").obey(41)
			n.run("later", obedient(50))
			require.Equal(t, pid, n.shimPid(testNS, "later"), "the room of one that has gone is taken")
			end(n)
			n.Run()
			require.Equal(t, pid, n.shimPid(testNS, "shared-0"))
			n.run("new", obedient(60)).obey(60)
			for i := range 4 {
				if i != 1 {
					n.taskOf(fmt.Sprint("shared-", i)).obey(uint32(40 + i))
				}
			}
			n.taskOf("later").obey(50)
			n.awaitNoIdle()
		})
	}
}

// A shim that serves again and again takes no more memory and no more files for it.
func TestReuseCostsNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.keepIdle(forGood)
	b := n.create("again", forever())
	require.NoError(t, b.round())
	n.awaitIdle(2)
	var pid, fds, rss int
	const rounds, settled = 90, 20
	for i := range rounds {
		task, err := b.NewTask(b.ctx, cio.NullIO)
		require.NoError(t, err)
		if i == settled || i == rounds-1 {
			now := n.shimPid(testNS, "again")
			nowFds, nowRSS := restingFiles(t, now), residentKB(t, now)
			if i == settled {
				pid, fds, rss = now, nowFds, nowRSS
			} else {
				require.Equal(t, pid, now)
				require.LessOrEqual(t, nowFds, fds, "open files of the shim")
				require.Less(t, nowRSS, rss+8<<10, "resident memory of the shim, kB")
				t.Logf("a shim after %d tasks: %d files, %d kB; after %d: %d files, %d kB", settled, fds, rss, rounds,
					nowFds, nowRSS)
			}
		}
		_, err = task.Delete(b.ctx, containerd.WithProcessKill)
		require.NoError(t, err)
	}
	b.remove()
	n.keepIdle(warmIdle)
}

// restingFiles is how many files a process has open when it has nothing to do: the least of some looks.
func restingFiles(t *testing.T, pid int) int {
	t.Helper()
	least := openFiles(t, pid)
	for range 30 {
		time.Sleep(tick)
		least = min(least, openFiles(t, pid))
	}
	return least
}

// openFiles counts the files that a shim has open. Left out are handles of processes, which Go closes when it collects
// garbage, and what the shim watches a cgroup of version 1 for OOM with: it closes that when it hears of the cgroup's
// removal, and mostly, not always, does.
func openFiles(t *testing.T, pid int) int {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	require.NoError(t, err)
	return len(slices.DeleteFunc(fds, func(fd string) bool {
		to, err := os.Readlink(fd)
		return err != nil || strings.HasPrefix(to, "anon_inode:[pidfd]") ||
			strings.HasPrefix(to, "anon_inode:[eventfd]")
	}))
}

func residentKB(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	var kb int
	for _, line := range strings.Split(string(data), "\n") {
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &kb) // other lines do not match
	}
	require.NotZero(t, kb)
	return kb
}
