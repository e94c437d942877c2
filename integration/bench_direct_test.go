// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"os"
	"path/filepath"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/shimclient"
)

// direct runs containers with runc's shim and no daemon: one process that was started before, called over its socket,
// as nothing that uses this shim can be quicker.
type direct struct {
	*bare
	task    *shimclient.Task
	options *anypb.Any
}

// newDirect starts the shim; end ends it.
func newDirect(b *bench) (d *direct, end func()) {
	d = &direct{bare: &bare{b: b, dir: filepath.Join(b.dir, "direct"), runtime: kit.runc}}
	for _, dir := range []string{d.dir, d.path("bundles"), d.path("runc"), d.path("s"), d.path("shim")} {
		require.NoError(b.t, os.Mkdir(dir, 0o711))
	}
	require.NoError(b.t, os.WriteFile(d.path("shim", "config.json"), []byte("{}"), 0o600))
	opts, err := typeurl.MarshalAnyToProto(&options.Options{Root: d.path("runc"), BinaryName: kit.runc})
	require.NoError(b.t, err)
	d.options = opts
	log, err := shimclient.OpenLog(d.path("shim", "log"), nil)
	require.NoError(b.t, err)
	launcher := shimclient.NewLauncher(shimclient.LauncherConfig{
		GRPCAddress: b.stock.Address(), TTRPCAddress: filepath.Join(b.stock.Dir, "c.ttrpc"), SocketDir: d.path("s"),
	})
	binary, err := shimclient.NewResolver(nil).Resolve(kit.shim)
	require.NoError(b.t, err)
	reply, err := launcher.Start(b.stock.ctx, shimclient.StartRequest{
		Binary: binary, Namespace: testNS, ID: "direct", Bundle: d.path("shim"), Token: shimclient.NewToken(),
	})
	require.NoError(b.t, err)
	ep, err := shimclient.EndpointOf(reply)
	require.NoError(b.t, err)
	conn, err := shimclient.Dial(b.stock.ctx, ep, shimclient.DefaultDeadlines())
	require.NoError(b.t, err)
	d.task, err = conn.Task(ep.Version)
	require.NoError(b.t, err)
	return d, func() {
		require.NoError(b.t, d.task.Shutdown(b.stock.ctx, &taskapi.ShutdownRequest{ID: "direct"}))
		<-conn.Done()
		require.NoError(b.t, conn.Close())
		require.NoError(b.t, log.Close())
		left, err := filepath.Glob(d.path("bundles", "*"))
		require.NoError(b.t, err)
		state, err := filepath.Glob(d.path("runc", testNS, "*"))
		require.NoError(b.t, err)
		require.Empty(b.t, append(left, state...), "left of the shim alone")
	}
}

func (d *direct) prepare(id string) (subject, error) {
	s, err := d.bare.prepare(id)
	if err != nil {
		return nil, err
	}
	return &called{bundled: s.(*bundled), d: d}, nil
}

// called is a container of the shim's.
type called struct {
	*bundled
	d *direct
}

func (s *called) create() error {
	if err := os.MkdirAll(s.bundle("rootfs"), 0o711); err != nil {
		return errors.Wrapf(err, "cannot make the bundle of %s", s.id)
	}
	if err := os.WriteFile(s.bundle("config.json"), s.spec, 0o600); err != nil {
		return errors.Wrapf(err, "cannot write the spec of %s", s.id)
	}
	_, err := s.d.task.Create(s.box.ctx, &taskapi.CreateTaskRequest{
		ID: s.id, Bundle: s.bundle(), Rootfs: mount.ToProto(s.mounts), Options: s.d.options,
	})
	return errors.Wrapf(err, "cannot create %s", s.id)
}

func (s *called) start() error {
	_, err := s.d.task.Start(s.box.ctx, &taskapi.StartRequest{ID: s.id})
	return errors.Wrapf(err, "cannot start %s", s.id)
}

func (s *called) end() error {
	if err := s.d.task.Kill(s.box.ctx, &taskapi.KillRequest{ID: s.id, Signal: uint32(unix.SIGKILL)}); err != nil {
		return errors.Wrapf(err, "cannot kill %s", s.id)
	}
	ctx, cancel := context.WithTimeout(s.box.ctx, patience)
	defer cancel()
	r, err := s.d.task.Wait(ctx, &taskapi.WaitRequest{ID: s.id})
	if err == nil && r.ExitStatus != 137 {
		err = errors.Errorf("it has exited with %d", r.ExitStatus)
	}
	return errors.Wrapf(err, "cannot end %s", s.id)
}

func (s *called) delete() error {
	if _, err := s.d.task.Delete(s.box.ctx, &taskapi.DeleteRequest{ID: s.id}); err != nil {
		return errors.Wrapf(err, "cannot delete %s", s.id)
	}
	return errors.Wrapf(os.RemoveAll(s.bundle()), "cannot remove the bundle of %s", s.id)
}
