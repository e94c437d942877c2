// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/report"
	"github.com/shimyard/shimyard/integration/internal/tools"
)

// crunSpec is the version of the OCI runtime spec that Debian's crun knows.
const crunSpec = "1.0.2"

// findCrun looks for crun, if it is to be measured and can run here. It comes before the daemons, which get its
// libraries with their environment.
func (b *bench) findCrun() {
	if !b.wants("crun") {
		return
	}
	path, libraries, err := kit.Crun()
	switch {
	case tools.Unavailable(err):
		b.t.Logf("crun is not measured: %v", err)
		return
	case hybridCgroups():
		b.t.Log("crun is not measured: it takes the hierarchy of cgroup v2 beside those of v1 for its own; " +
			"make bench hides it")
		return
	}
	require.NoError(b.t, err)
	b.crun = newBare(b, "crun", path, withOptions(func(o *options.Options) { o.BinaryName = path }), with(
		func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			s.Version = crunSpec
			return nil
		}))
	b.crun.env = []string{"LD_LIBRARY_PATH=" + libraries}
	cmd := exec.Command(path, "--version")
	cmd.Env = b.crun.env
	said, err := cmd.CombinedOutput()
	require.NoError(b.t, err, "%s", said)
}

// unifiedCgroups is where cgroup v2 is beside v1.
const unifiedCgroups = "/sys/fs/cgroup/unified"

// hybridCgroups tells whether the machine has cgroup v1, and v2 beside it.
func hybridCgroups() bool {
	var fs unix.Statfs_t
	return unix.Statfs(unifiedCgroups, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// clearHidden removes what crun leaves where the hierarchy of v2 was before it was hidden: it makes directories there.
func (b *bench) clearHidden() {
	var fs unix.Statfs_t
	if unix.Statfs(unifiedCgroups, &fs) != nil || fs.Type != unix.TMPFS_MAGIC {
		return
	}
	for _, n := range b.daemons(0) {
		require.NoError(b.t, os.RemoveAll(filepath.Join(unifiedCgroups, n.Cgroup())))
	}
}

// environ is what the daemons have in their environment besides.
func (b *bench) environ() []string {
	if b.crun == nil {
		return nil
	}
	return b.crun.env
}

// withCrun is latency and throughput with crun in the place of runc, on each side.
func (b *bench) withCrun() {
	if b.crun == nil {
		return
	}
	defer b.clearHidden()
	all := []contender{
		{report.Stock, b.stock.with(b.crun.opts...)}, {report.Ours, b.ours.with(b.crun.opts...)},
		{report.Bare, b.crun.prepare},
	}
	b.timeSteps("One container at a time, with crun (also where the column says runc)", "crun", "", all, func(int) {})
	const workers = 8
	row := b.results.Add(report.Row{
		Section: "Containers a second, with crun (also where the column says runc)",
		Name:    fmt.Sprintf("create, start, kill and delete, %d at once", workers), Unit: "/s", More: true,
	})
	for pass := range b.passes {
		b.refresh()
		for _, c := range inTurn(all, pass) {
			row.Sample(c.side, b.rate(c, workers))
		}
	}
}
