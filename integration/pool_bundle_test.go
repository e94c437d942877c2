// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/integration/internal/daemon"
)

// wrapper is an OCI runtime that looks at its working directory before and after runc, as those do that are put before
// runc to change a spec, or to watch a container's init.
const wrapper = `#!/bin/sh
verb=-
for arg; do
	case $arg in create|start|kill|delete|exec) verb=$arg; break ;; esac
done
log() { echo "$verb $1" >>%[1]q; }
log "id $(sed -n 's/.*"SHIMYARD_TEST=\([a-z0-9-]*\)".*/\1/p' ./config.json)"
log "cwd $(basename "$PWD")"
%[2]q "$@"
status=$?
[ -s ./init.pid ] && log "pid $(cat ./init.pid)"
exit $status
`

// looked is what the wrapper has found, by verb.
func looked(t *testing.T, path string) map[string][]string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	found := map[string][]string{}
	for line := range strings.Lines(string(data)) {
		verb, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		found[verb] = append(found[verb], what)
	}
	require.NoError(t, os.Truncate(path, 0))
	return found
}

// withEnv puts the container's name where the wrapper finds it in the spec.
func withEnv(id string) setupOpt { return with(oci.WithEnv([]string{"SHIMYARD_TEST=" + id})) }

// An OCI runtime that a warm shim runs works in the bundle: it finds ./config.json and ./init.pid of this container,
// and not of an earlier one.
func TestRuntimeWorksInTheBundle(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.keepIdle(forGood)
	dir := t.TempDir()
	path, log := filepath.Join(dir, "runc-looking"), filepath.Join(dir, "log")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, wrapper, log, kit.runc), 0o755))
	var pid int
	for i := range 3 {
		id := fmt.Sprint("looked-", i)
		j := n.run(id, forever(), withEnv(id), withOptions(func(o *options.Options) { o.BinaryName = path }))
		s := n.shimOf(testNS, id)
		require.True(t, isWarm(s), "%v", s)
		if i > 0 {
			require.Equal(t, pid, s.Pid, "another shim than that of the container before")
		}
		pid = s.Pid
		j.execOutput("e", "true")
		init := fmt.Sprint("pid ", j.Pid())
		j.finish()
		found := looked(t, log)
		for _, verb := range []string{"create", "start", "exec", "kill", "delete"} {
			require.Subset(t, found[verb], []string{"id " + id, "cwd " + id, init}, verb)
		}
		for verb, lines := range found {
			for _, line := range lines {
				require.Contains(t, []string{"id " + id, "cwd " + id, init}, line, verb)
			}
		}
	}
	n.keepIdle(warmIdle)
}

// A poststop hook with relative paths finds the bundle.
func TestPoststopHookInTheBundle(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.keepIdle(forGood)
	out := filepath.Join(t.TempDir(), "out")
	for i := range 3 {
		id := fmt.Sprint("hooked-", i)
		hooks := func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{
				Path: "rootfs/bin/busybox",
				Args: []string{"sh", "-c", "cat ./config.json ./init.pid >" + out},
			}}}
			return nil
		}
		j := n.run(id, forever(), withEnv(id), with(hooks))
		require.True(t, isWarm(n.shimOf(testNS, id)))
		init := fmt.Sprint(j.Pid())
		j.finish()
		data, err := os.ReadFile(out)
		require.NoError(t, err)
		require.Contains(t, string(data), "SHIMYARD_TEST="+id)
		require.True(t, strings.HasSuffix(string(data), "}"+init), "the pid of init is not in ./init.pid")
		require.NoError(t, os.Remove(out))
	}
	n.keepIdle(warmIdle)
}

// The bundle on a warm shim has all that one has whose shim was started for it, and of ours only the records.
func TestBundleOnAWarmShim(t *testing.T) {
	t.Parallel()
	needRoot(t)
	names := func(n *node, id string) map[string]os.FileMode {
		found := map[string]os.FileMode{}
		entries, err := os.ReadDir(n.Bundle(testNS, id))
		require.NoError(t, err)
		for _, e := range entries {
			info, err := e.Info()
			require.NoError(t, err)
			found[e.Name()] = info.Mode()
		}
		return found
	}
	stock := newNode(t, func(o *daemon.Options) { o.Binary = tool(t, kit.Stock) })
	j := stock.run("c", forever())
	want := names(stock, "c")
	j.finish()
	n := newNode(t)
	n.keepIdle(forGood)
	for range 2 {
		j := n.run("c", forever())
		require.True(t, isWarm(n.shimOf(testNS, "c")))
		got := names(n, "c")
		for _, name := range []string{"shimyard.json", "warm.json"} {
			require.Contains(t, got, name)
			delete(got, name)
		}
		require.Equal(t, want, got)
		b, err := bundle.Layout{State: filepath.Dir(filepath.Dir(n.Bundle(testNS, "c"))), Root: n.Dir}.Open(testNS, "c")
		require.NoError(t, err)
		sockets, err := b.SocketDir()
		require.NoError(t, err)
		require.Equal(t, n.SocketDir(), sockets)
		j.finish()
	}
	n.keepIdle(warmIdle)
}
