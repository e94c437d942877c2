// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/daemon"
)

// unlike is what a warm shim, and what it runs, cannot have in common with those of a shim that was started for the
// container: it is the table in .github/docs/warm.md. A container has all in common.
var unlike = []string{
	"shim args -id",
	"shim env OTEL_SERVICE_NAME", "hook-create env OTEL_SERVICE_NAME", "hook-start env OTEL_SERVICE_NAME",
	"hook-stop env OTEL_SERVICE_NAME", "runc-create env OTEL_SERVICE_NAME", "runc-start env OTEL_SERVICE_NAME",
	"runc-exec env OTEL_SERVICE_NAME", "runc-kill env OTEL_SERVICE_NAME", "runc-delete env OTEL_SERVICE_NAME",
	"bundle shimyard.json", "bundle warm.json", "socket type",
}

// looks are what can be seen of a container and its shim: what is looked at, and what was seen.
type looks map[string]string

// A container on a warm shim looks as one on a shim of its own: from outside, from within, to its hooks and to the OCI
// runtime. So does the shim, the first time that it serves and later ones.
func TestWarmShimIsLikeItsOwn(t *testing.T) {
	t.Parallel()
	needRoot(t)
	ignoreNothing()
	stock := newNode(t, func(o *daemon.Options) { o.Binary = tool(t, kit.Stock) })
	want := lookAt(stock, "c")
	require.NotEmpty(t, want["hook-create env PATH"], "the hook has not told its environment")
	n := newNode(t)
	n.keepIdle(forGood)
	for range 3 {
		got := lookAt(n, "c")
		require.Contains(t, got["shim args -id"], "_", "not a warm shim")
		all := maps.Clone(want)
		maps.Copy(all, got)
		var differ []string
		for what := range all {
			if want[what] != got[what] {
				differ = append(differ, what)
			}
		}
		for _, what := range differ {
			require.Contains(t, unlike, what, "%s: stock's: %q, warm: %q", what, want[what], got[what])
		}
		require.ElementsMatch(t, unlike, differ, "the docs name what is alike")
	}
	n.keepIdle(warmIdle)
}

// ignoreNothing lets daemons inherit no ignored signal, as they do from nohup. A container has them by chance: runc takes
// its signals up beside the start of the container, and what it has taken up is not ignored any more.
func ignoreNothing() {
	for _, sig := range []os.Signal{unix.SIGHUP, unix.SIGINT} { // Go's programs pass on no others
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}

// lookAt runs a container, and looks at all that it and others could look at.
func lookAt(n *node, id string) looks {
	n.t.Helper()
	out := filepath.Join(n.Dir, "tmp", "looks")
	require.NoError(n.t, os.MkdirAll(out, 0o700))
	defer os.RemoveAll(out)
	runtime := filepath.Join(out, "runc-looking")
	require.NoError(n.t, os.WriteFile(runtime, fmt.Appendf(nil, envTeller, out, kit.runc), 0o755))
	told := func(name string) specs.Hook {
		script := "cat /proc/self/environ >" + filepath.Join(out, name)
		return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}}
	}
	hooks := func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Hooks = &specs.Hooks{
			CreateRuntime: []specs.Hook{told("hook-create")}, Poststart: []specs.Hook{told("hook-start")},
			Poststop: []specs.Hook{told("hook-stop")},
		}
		return nil
	}
	l := looks{}
	j := n.run(id, forever(), with(hooks), withOptions(func(o *options.Options) { o.BinaryName = runtime }))
	s := n.shimOf(testNS, id)
	l.process(n, "shim", s.Pid)
	for i, arg := range strings.Fields(s.Args) {
		if strings.HasPrefix(arg, "-") {
			l["shim args "+arg] = own(n, after(strings.Fields(s.Args)[i:]))
		}
	}
	require.Eventually(n.t, func() bool {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", j.Pid()))
		return err == nil && filepath.Base(exe) == "busybox"
	}, patience, tick, "the container's program does not run")
	l.process(n, "init", int(j.Pid()))
	require.Equal(n.t, strconv.Itoa(s.Pid), l["init status PPid"])
	delete(l, "init status PPid")
	l.bundle(n, id)
	l.socket(n, id)
	l["guest env"], _ = j.execOutput("e", "env")
	j.finish()
	for _, name := range []string{
		"hook-create", "hook-start", "hook-stop", "runc-create", "runc-start", "runc-exec", "runc-kill", "runc-delete",
	} {
		data, err := os.ReadFile(filepath.Join(out, name))
		require.NoError(n.t, err)
		l.env(n, name, string(data))
	}
	return l
}

// envTeller is an OCI runtime that writes its environment down.
const envTeller = `#!/bin/sh
for arg; do
	case $arg in create|start|kill|delete|exec) # the first one is the shim's, not that of its delete command
		[ -e %[1]q/runc-$arg ] || cat /proc/self/environ >%[1]q/runc-$arg
		break ;;
	esac
done
exec %[2]q "$@"
`

// after is the argument that comes after the first; "" if that is a flag.
func after(args []string) string {
	if len(args) < 2 || strings.HasPrefix(args[1], "-") {
		return ""
	}
	return args[1]
}

var numbers = regexp.MustCompile(`\[\d+\]`)

// own is a text in which what is another for each daemon has one name.
func own(n *node, text string) string {
	text = strings.ReplaceAll(text, n.Dir, "DIR")
	text = strings.ReplaceAll(text, filepath.Base(n.Dir), "DIR")
	return numbers.ReplaceAllString(text, "")
}

func (l looks) env(n *node, of, environ string) {
	for entry := range strings.SplitSeq(environ, "\x00") {
		if name, value, ok := strings.Cut(entry, "="); ok {
			l[of+" env "+name] = own(n, value)
		}
	}
}

// passing are the lines of a process's status that are another at each look, or for each process.
var passing = regexp.MustCompile(
	`^(Pid|Tgid|NSpid|NStgid|NSpgid|NSsid|Vm|Rss|Hugetlb|Threads|SigQ|State|FDSize|.*_ctxt_switches)`)

// process looks at one process, as root can from outside.
func (l looks) process(n *node, of string, pid int) {
	n.t.Helper()
	read := func(name string) string {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		require.NoError(n.t, err)
		return own(n, string(data))
	}
	for line := range strings.Lines(read("status")) {
		if !passing.MatchString(line) {
			name, value, _ := strings.Cut(line, ":")
			l[of+" status "+name] = strings.TrimSpace(value)
		}
	}
	for _, name := range []string{
		"limits", "cgroup", "oom_score_adj", "coredump_filter", "personality", "loginuid",
	} {
		l[of+" "+name] = read(name)
	}
	for _, link := range []string{"cwd", "root", "exe", "ns/mnt", "ns/pid", "ns/net", "ns/ipc", "ns/uts", "ns/user"} {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", pid, link))
		require.NoError(n.t, err)
		mine, _ := os.Readlink("/proc/self/" + link)
		l[of+" "+link] = fmt.Sprint(own(n, target), " mine: ", target == mine)
	}
	l.env(n, of, read("environ"))
	l.scheduling(n, of, pid)
	l.files(n, of, pid)
}

// scheduling is of the process's priorities, and of its place among processes.
func (l looks) scheduling(n *node, of string, pid int) {
	n.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(n.t, err)
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	field := func(number int) string { return fields[number-3] }
	l[of+" leads group"] = strconv.FormatBool(field(5) == strconv.Itoa(pid))
	l[of+" leads session"] = strconv.FormatBool(field(6) == strconv.Itoa(pid))
	session, err := unix.Getsid(n.Pid())
	require.NoError(n.t, err)
	l[of+" session of the daemon"] = strconv.FormatBool(field(6) == strconv.Itoa(session))
	for name, number := range map[string]int{"tty": 7, "priority": 18, "nice": 19, "rt priority": 40, "policy": 41} {
		l[of+" "+name] = field(number)
	}
	io, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, 1, uintptr(pid), 0)
	require.Zero(n.t, errno)
	l[of+" io priority"] = strconv.Itoa(int(io))
}

// files are the open ones: how many there are of each name, at the least, since a shim opens some for a moment.
func (l looks) files(n *node, of string, pid int) {
	n.t.Helper()
	least := map[string]int{}
	for look := range 20 {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		require.NoError(n.t, err)
		targets := map[string]string{}
		for _, e := range entries {
			if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name())); err == nil {
				targets[e.Name()] = target
			}
		}
		dropInherited(targets)
		count := map[string]int{}
		for _, target := range targets {
			count[own(n, target)]++
		}
		if look == 0 {
			least = count
		}
		for name := range least {
			least[name] = min(least[name], count[name])
		}
		time.Sleep(tick)
	}
	delete(least, "anon_inode:[pidfd]") // of runc commands that are over, until the shim's garbage is collected
	for name, times := range least {
		l[of+" open "+name] = strconv.Itoa(times)
	}
}

// dropInherited leaves out the descriptor by which a shim's helper has handed it the socket that it listens at, where the
// shim has another of the same socket: it serves with a copy, and the first is closed when its garbage is collected, soon
// or late (containerd's pkg/shim, serveListener).
func dropInherited(targets map[string]string) {
	const handed = "3"
	for fd, target := range targets {
		if fd != handed && strings.HasPrefix(target, "socket:") && target == targets[handed] {
			delete(targets, handed)
			return
		}
	}
}

// bundle is what is in it, and who may do what with that.
func (l looks) bundle(n *node, id string) {
	n.t.Helper()
	dir := n.Bundle(testNS, id)
	require.NoError(n.t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == filepath.Join(dir, "rootfs") {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		target, _ := os.Readlink(path)
		name, _ := filepath.Rel(dir, path)
		l["bundle "+name] = own(n, fmt.Sprintf("%o %d:%d %s", st.Mode, st.Uid, st.Gid, target))
		return nil
	}))
}

// socket is where the container's shim says that it listens, and what is there.
func (l looks) socket(n *node, id string) {
	n.t.Helper()
	address, err := shim.CreateSocketAddress(n.ctx, n.SocketDir(), n.Address(), id, false)
	require.NoError(n.t, err)
	path := strings.TrimPrefix(address, "unix://")
	var st unix.Stat_t
	require.NoError(n.t, unix.Lstat(path, &st))
	l["socket type"] = fmt.Sprintf("%o", st.Mode)
	require.NoError(n.t, unix.Stat(path, &st))
	l["socket"] = fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
}
