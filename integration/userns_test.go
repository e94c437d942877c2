// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

const hostRoot = 100000

// remapped gives a container a user namespace whose root is hostRoot outside,
// and a rootfs that fits.
func (n *node) remapped() setupOpt {
	n.t.Helper()
	img, err := n.Client().GetImage(n.ctx, imageName)
	require.NoError(n.t, err)
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: hostRoot, Size: 65536}}
	return func(s *setup) {
		s.snapshot = containerd.WithUserNSRemappedSnapshot("remapped", img, ids, ids)
		s.spec = append(s.spec, oci.WithUserNamespace(ids, ids))
		s.options.IoUid, s.options.IoGid = hostRoot, hostRoot
	}
}

func TestUserNamespace(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	var out output
	script := "id -u; cat /proc/self/uid_map; stat -c %u /bin/busybox; touch /mine && stat -c %u /mine; sleep 1000000"
	j := n.create("userns", shell(script), n.remapped()).newTaskIO(n.fifos(nil, &out, &out))
	j.start()
	require.Eventually(t, func() bool { return strings.Count(out.String(), "\n") == 4 }, patience, tick,
		"the container's output")
	lines := strings.Split(out.String(), "\n")
	require.Equal(t, "0", lines[0])
	require.Equal(t, fmt.Sprintf("0 %d 65536", hostRoot), strings.Join(strings.Fields(lines[1]), " "))
	require.Equal(t, []string{"0", "0"}, lines[2:4], "root owns its files")

	require.EqualValues(t, hostRoot, owner(t, fmt.Sprintf("/proc/%d", j.Pid())).Uid)
	bundle := n.Bundle(testNS, j.ID())
	require.EqualValues(t, hostRoot, owner(t, bundle).Gid)
	fi, err := os.Stat(bundle)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o710), fi.Mode().Perm())
	e := j.wait()
	require.NoError(t, j.Kill(n.ctx, 9))
	require.EqualValues(t, 137, e.code())
	j.remove()
}

// The bundle of a container without a user namespace is root's alone.
func TestBundlePermissions(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	j := n.run("plain", forever())
	fi, err := os.Stat(n.Bundle(testNS, j.ID()))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), fi.Mode().Perm())
	fi, err = os.Stat(filepath.Join(n.Bundle(testNS, j.ID()), "rootfs"))
	require.NoError(t, err)
	require.True(t, fi.IsDir())
	j.finish()
}

func owner(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	fi, err := os.Stat(path)
	require.NoError(t, err)
	return fi.Sys().(*syscall.Stat_t)
}

// idmapMount binds a directory of the host's root into the container, where the
// container's root owns it.
func idmapMount(source string) setupOpt {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: hostRoot, Size: 65536}}
	return with(oci.WithMounts([]specs.Mount{{
		Type: "bind", Source: source, Destination: "/mnt", Options: []string{"rbind"},
		UIDMappings: ids, GIDMappings: ids,
	}}))
}

func TestIDMapMounts(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	source := filepath.Join(n.Dir, "volume")
	require.NoError(t, os.Mkdir(source, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(source, "given"), nil, 0o600))
	var out output
	j := n.create("idmap", shell("stat -c %u /mnt/given && touch /mnt/made && exit 5"), n.remapped(),
		idmapMount(source)).
		newTaskIO(n.fifos(nil, &out, &out))
	e := j.wait()
	j.start()
	code := e.code()
	j.remove()
	require.EqualValues(t, 5, code, out.String())
	require.Equal(t, "0\n", out.String())
	require.EqualValues(t, 0, owner(t, filepath.Join(source, "made")).Uid, "outside it is root's")
}

// A runtime that says that it cannot do them would mount the directory plainly,
// and the container would get at files that it must not.
func TestIDMapMountsRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	script := filepath.Join(n.Dir, "old-runc")
	text := fmt.Sprintf("#!/bin/sh\nfor arg; do [ \"$arg\" = features ] && exec echo '{\"ociVersionMin\":\"1.0.0\",\"ociVersionMax\":\"1.0.2\"}'; done\nexec %s \"$@\"\n", kit.runc)
	require.NoError(t, os.WriteFile(script, []byte(text), 0o755))
	b := n.create("refused", forever(), n.remapped(), idmapMount(n.Dir),
		withOptions(func(o *options.Options) { o.BinaryName = script }))
	_, err := b.NewTask(n.ctx, cio.NullIO)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	b.noTask()
	b.remove()
}
