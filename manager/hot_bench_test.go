// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// benchTasks is how many tasks a full node has.
const benchTasks = 300

// benchYard is a task manager with tasks behind shims in this process, each with a connection of its own.
func benchYard(b *testing.B, tasks int) (*TaskManager, context.Context) {
	b.Helper()
	s, m := newMemShim(b), memManager(b)
	for n := range tasks {
		_, p := memTask(b, m, fmt.Sprintf("task-%d", n), ownPid())
		require.NoError(b, p.OnConnected(s.connect()))
	}
	return &TaskManager{shims: m}, namespaces.WithNamespace(context.Background(), testNamespace)
}

// Every call of a client begins with a lookup.
func BenchmarkGet(b *testing.B) {
	tasks, ctx := benchYard(b, benchTasks)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tasks.Get(ctx, "task-150"); err != nil {
			b.Fatal(err)
		}
	}
}

// All tasks of a node, as containerd's own start asks for them, and as a client does, who wants their states.
func BenchmarkList(b *testing.B) {
	for _, c := range []struct {
		name string
		all  bool
	}{{"without states", true}, {"with states", false}} {
		b.Run(c.name, func(b *testing.B) {
			tasks, ctx := benchYard(b, benchTasks)
			b.ReportAllocs()
			for b.Loop() {
				list, err := tasks.Tasks(ctx, c.all)
				if err != nil || len(list) != benchTasks {
					b.Fatal(len(list), err)
				}
			}
		})
	}
}

// The states of many tasks whose shims are vouched for, as containerd's list asks for them, without the deadline that
// it gives each. Every shim has a hundred of them. The first list is none of it.
func BenchmarkListOfThousands(b *testing.B) {
	const count, perShim = 5000, 100
	s, m := newMemShim(b), memManager(b)
	for n := range count {
		i, p := memTask(b, m, fmt.Sprintf("task-%d", n), ownPid())
		if n%perShim == 0 {
			require.NoError(b, p.OnConnected(s.connect()))
		}
		first := m.find(testNamespace, fmt.Sprintf("task-%d", n/perShim*perShim))
		i.proc, i.binary.Runtime = first.proc, plugins.RuntimeRuncV2
		edit(i, func(r *bundle.Record) { r.Task.PidOwned = true })
		b.Cleanup(i.ledger.Seal)
	}
	tasks, ctx := &TaskManager{shims: m}, namespaces.WithNamespace(context.Background(), testNamespace)
	list := func() {
		list, err := tasks.Tasks(ctx, false)
		if err != nil || len(list) != count {
			b.Fatal(len(list), err)
		}
		for _, t := range list {
			if st, err := t.State(ctx); err != nil || st.Status != runtime.RunningStatus {
				b.Fatal(st, err)
			}
		}
	}
	list()
	b.ReportAllocs()
	before := cpuTime(b)
	for b.Loop() {
		list()
	}
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
}

// A call to a shim, with nothing around it and with what the manager does around it. The difference is the manager's;
// the rest is ttrpc, over a pipe in this process.
func BenchmarkCall(b *testing.B) {
	ask := func(ctx context.Context, c *shimclient.Task) error {
		_, err := c.Pids(ctx, &taskapi.PidsRequest{ID: "task-0"})
		return err
	}
	for _, c := range []struct {
		name string
		call func(context.Context, *Task) error
	}{
		{"direct", func(ctx context.Context, t *Task) error {
			l, _ := t.i.link()
			return ask(ctx, l.Task)
		}},
		{"wrapped", func(ctx context.Context, t *Task) error { return t.call(ctx, shimproc.Repeatable, ask) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			tasks, ctx := benchYard(b, 1)
			t, err := tasks.Get(ctx, "task-0")
			require.NoError(b, err)
			b.ReportAllocs()
			for b.Loop() {
				if err := c.call(ctx, t.(*Task)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A State, which clients ask for most: of a shim that is asked each time, and of one that is vouched for.
func BenchmarkState(b *testing.B) {
	for name, runtimeName := range map[string]string{"asked": "io.containerd.other.v1", "just asked": plugins.RuntimeRuncV2} {
		b.Run(name, func(b *testing.B) {
			tasks, ctx := benchYard(b, 1)
			task, err := tasks.Get(ctx, "task-0")
			require.NoError(b, err)
			i := task.(*Task).i
			i.binary.Runtime = runtimeName
			edit(i, func(r *bundle.Record) { r.Task.PidOwned = true })
			b.ReportAllocs()
			for b.Loop() {
				if s, err := task.State(ctx); err != nil || s.Status != runtime.RunningStatus {
					b.Fatal(s, err)
				}
			}
		})
	}
}

// What a create has to know of a spec, of the size that Kubernetes makes.
func BenchmarkReadSpec(b *testing.B) {
	raw, err := json.Marshal(fullSpec())
	require.NoError(b, err)
	spec := anySpec(b, string(raw))
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		facts, err := readSpec(spec)
		if err != nil || len(facts.groups) != 1 {
			b.Fatal(facts, err)
		}
	}
}

// fullSpec is a spec with all that usually is in one: environment, mounts, capabilities, namespaces, a seccomp profile.
func fullSpec() *specs.Spec {
	var env, capabilities, calls []string
	for n := range 30 {
		env = append(env, fmt.Sprintf("SERVICE_%d_PORT_8080_TCP_ADDR=10.96.0.%d", n, n))
	}
	for n := range 14 {
		capabilities = append(capabilities, fmt.Sprintf("CAP_NUMBER_%d", n))
	}
	for n := range 350 {
		calls = append(calls, fmt.Sprintf("syscall_%d", n))
	}
	var mounts []specs.Mount
	for _, to := range []string{
		"/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/etc/hosts", "/dev/termination-log",
		"/etc/hostname",
		"/etc/resolv.conf", "/dev/shm", "/var/run/secrets/kubernetes.io/serviceaccount",
	} {
		how := []string{"rbind", "rprivate", "ro"}
		mounts = append(mounts, specs.Mount{Destination: to, Type: "bind", Source: "/var/lib/somewhere" + to,
			Options: how})
	}
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Args: []string{"/bin/server", "--listen=:8080"}, Env: env, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities,
				Permitted: capabilities},
		},
		Root:   &specs.Root{Path: "rootfs"},
		Mounts: mounts,
		Annotations: map[string]string{
			"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "0123456789abcdef",
			"io.kubernetes.cri.container-name": "server", "io.kubernetes.cri.sandbox-namespace": "default",
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace, Path: "/proc/1/ns/net"},
			},
			CgroupsPath: "/kubepods/burstable/pod01/0123456789abcdef",
			MaskedPaths: []string{"/proc/acpi", "/proc/kcore", "/proc/keys"},
			Seccomp: &specs.LinuxSeccomp{
				DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64},
				Syscalls: []specs.LinuxSyscall{{Names: calls, Action: specs.ActAllow}},
			},
		},
	}
}
