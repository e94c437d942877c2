// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/box"
	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// cri is containerd's own suite of its CRI plugin. It kills the daemon by name, and expects it to come back.
var cri = &suite.Suite{
	Name:    "cri",
	About:   "containerd's integration (CRI), of the pinned version",
	Timeout: 70 * time.Minute,
	Prepare: func(k *suite.Kit, p *suite.Plan) error {
		for _, program := range []string{"pidof", "pkill"} {
			if _, err := exec.LookPath(program); err != nil {
				return errors.Wrapf(suite.ErrMissing, "%s is not installed", program)
			}
		}
		dir, err := k.Containerd()
		if err != nil {
			return err
		}
		p.Shared = append(p.Shared, dir)
		p.Data["dir"] = filepath.Join(dir, "integration")
		for name, b := range map[string]suite.Build{
			"cri.test":                   {Package: "./integration", Test: true},
			"runc-fp":                    {Package: "./integration/failpoint/cmd/runc-fp"},
			"cni-bridge-fp":              {Package: "./integration/failpoint/cmd/cni-bridge-fp"},
			"loopback-v2":                {Package: "./integration/failpoint/cmd/loopback-v2"},
			"containerd-shim-runc-fp-v1": {Package: "./integration/failpoint/cmd/containerd-shim-runc-fp-v1"},
		} {
			b.Name, b.Dir = name, dir
			if p.Programs[name], err = k.Build(b); err != nil {
				return err
			}
		}
		return k.Network(p)
	},
	Run: runCRI,
}

// criConfig is that of containerd's own scripts.
const criConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  drain_exec_sync_io_timeout = "10s"
[plugins."io.containerd.snapshotter.v1.overlayfs"]
  slow_chown = true
[plugins."io.containerd.nri.v1.nri"]
  disable = false
  socket_path = "` + nriSocket + `"
  plugin_path = "/no/pre-launched/nri/plugins"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc-fp]
  cni_conf_dir = "` + failpointCNI + `"
  cni_max_conf_num = 1
  pod_annotations = ["io.containerd.runtime.v2.shim.failpoint.*"]
  runtime_type = "runc-fp.v1"
`

const failpointCNI = "/tmp/failpoint-cni-net.d"

// noReuse has each shim serve one container, as stock's do. Stock does not know the key.
const noReuse = `
[plugins."io.containerd.shim.v1.manager".runtimes."io.containerd.runc.v2"]
  reuse = 0
`

func runCRI(ctx context.Context, s *suite.Site) error {
	if err := s.Network(ctx); err != nil {
		return err
	}
	if err := suite.CNIConfig(failpointCNI, "containerd-net-failpoint", "cni-bridge-fp", "cni-fp"); err != nil {
		return err
	}
	if err := os.Symlink(s.Program("cni-bridge-fp"), filepath.Join(suite.CNIBin, "cni-bridge-fp")); err != nil {
		return errors.Wrap(err, "cannot put a CNI plugin in place")
	}
	// A test mounts this one into a container, from there.
	data, err := os.ReadFile(s.Program("loopback-v2"))
	if err != nil {
		return errors.Wrap(err, "cannot read a CNI plugin")
	}
	if err := os.WriteFile("/usr/local/bin/loopback-v2", data, 0o755); err != nil {
		return errors.Wrap(err, "cannot put a CNI plugin in place")
	}
	err = underCRI(ctx, s, criConfig, func(d *suite.Daemon) error { return criTests(ctx, s, d, "", "") })
	if err != nil {
		return err
	}
	// What it wants, a shim that ends with its pod, is what the daemon does when it is told not to keep shims.
	return underCRI(ctx, s, criConfig+noReuse,
		func(d *suite.Daemon) error { return criTests(ctx, s, d, "reuse=0: ", "^TestIssue7496$") })
}

func criTests(ctx context.Context, s *suite.Site, d *suite.Daemon, label, only string) error {
	return s.GoTest(ctx, suite.GoTest{
		Name: "cri", Label: label, Program: s.Program("cri.test"), Dir: s.Data["dir"], Timeout: time.Hour, Only: only,
		Args: []string{"-cri-endpoint=unix://" + d.Address, "-containerd-bin=containerd", "-build-dir=" + box.Programs},
		Skip: criSkip,
	})
}

// criSkip are tests that want more than a box has.
var criSkip = map[string]string{
	"TestIssue10467": "downloads a release of containerd",
	"TestUpgrade":    "downloads releases of containerd",
	"TestImageLoad":  "asks a Docker daemon for an image",
	"TestCRIImagePullTimeout/HoldingContentOpenWriterWithLocalPull":       "names the bytes that an image has in its registry",
	"TestCRIImagePullTimeout/HoldingContentOpenWriterWithTransferService": "names the bytes that an image has in its registry",
}

// underCRI starts a daemon that comes back when it ends, and ends it after do.
func underCRI(ctx context.Context, s *suite.Site, config string, do func(d *suite.Daemon) error) error {
	d, err := s.Daemon(ctx, suite.DaemonOptions{Config: config, Suffix: "-test",
		Args: []string{"--log-level", "debug"}})
	if err != nil {
		return err
	}
	stop := d.KeepAlive(ctx, 5*time.Second)
	err = do(d)
	stop()
	if serr := d.Stop(); err == nil {
		err = serr
	}
	return err
}
