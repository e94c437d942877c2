// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package payload makes the disk that brings to the virtual machine what is tested there, and what tests it.
package payload

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	_ "embed"

	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"

	"github.com/shimyard/shimyard/integration/internal/image"
	"github.com/shimyard/shimyard/integration/internal/tools"
)

// Library is what the scripts share that run in the machine.
//
//go:embed lib.sh
var Library string

// What Build puts into the directory, to be installed.
const (
	Ours      = "shimyard-1.deb" // our package
	OursNewer = "shimyard-2.deb" // the same as a later version
	Stock     = "containerd.deb" // containerd of the pinned release as a package of the name that Debian's has
)

// Size is enough for a disk of the directory.
const Size = 512 << 20

// Build fills the directory dir: the packages above, the guest program, crictl, images.
func Build(t *tools.Tools, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return errors.Wrap(err, "cannot make a directory for the payload")
	}
	var parts errgroup.Group
	parts.SetLimit(2) // linking uses little more than one CPU
	parts.Go(func() error { return ours(t, filepath.Join(dir, Ours), "0.0.1") })
	parts.Go(func() error { return stock(t, dir) })
	parts.Go(func() error { return ours(t, filepath.Join(dir, OursNewer), "0.0.2") })
	parts.Go(func() error { return crictl(t, filepath.Join(dir, "crictl")) })
	parts.Go(func() error { return build(t, filepath.Join(dir, "guest"), "./vm/guest") })
	parts.Go(func() error { return images(t, dir) })
	return parts.Wait()
}

func build(t *tools.Tools, dst, pkg string) error {
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", dst, pkg)
	cmd.Dir = t.Module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	return errors.Wrapf(err, "cannot build %s: %s", pkg, out)
}

// ours is the package as a release has it, but for the version.
func ours(t *tools.Tools, dst, version string) error {
	out := dst + ".d"
	defer os.RemoveAll(out)
	cmd := exec.Command("bash", "hack/package.sh", "deb", out)
	cmd.Dir = filepath.Dir(t.Module)
	cmd.Env = append(os.Environ(), "VERSION="+version)
	if output, err := cmd.CombinedOutput(); err != nil {
		return errors.Wrapf(err, "cannot build our package: %s", output)
	}
	found, _ := filepath.Glob(filepath.Join(out, "*.deb"))
	if len(found) != 1 {
		return errors.Errorf("hack/package.sh has made %d packages, not one", len(found))
	}
	return errors.Wrap(os.Rename(found[0], dst), "cannot place our package")
}

// images are what containers are made of (image.tar) and what is pulled (pulled.tar): busybox, with some MiB behind it,
// so that a pull takes a moment and shares nothing with the other.
func images(t *tools.Tools, dir string) error {
	busybox, err := t.Busybox()
	if err != nil {
		return err
	}
	if err := writeImage(filepath.Join(dir, "image.tar"), "localhost/busybox:latest", busybox); err != nil {
		return err
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		return errors.Wrap(err, "cannot read busybox")
	}
	more := make([]byte, 4<<20)
	if _, err := rand.Read(more); err != nil {
		return errors.Wrap(err, "cannot make up some bytes")
	}
	big := filepath.Join(dir, "busybox")
	if err := os.WriteFile(big, append(data, more...), 0o755); err != nil {
		return errors.Wrap(err, "cannot write a larger busybox")
	}
	defer os.Remove(big)
	return writeImage(filepath.Join(dir, "pulled.tar"), "pulled", big)
}

func writeImage(path, name, busybox string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return errors.Wrap(err, "cannot create an image")
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = errors.Wrap(cerr, "cannot write an image")
		}
	}()
	return image.Write(f, name, busybox)
}

// stockConfig describes a package of containerd as its own project builds it, with the unit of its own repository;
// runc is Debian's, which its own package depends on.
const stockConfig = `name: containerd
arch: %[1]s
version: 2.4.2-1
version_schema: none
maintainer: nobody
description: containerd of the release that this module requires
depends: [runc]
deb: {compression: none}
scripts:
  postinstall: %[2]s/stock-postinst.sh
contents:
  - {src: %[3]s, dst: /usr/bin/containerd, file_info: {mode: 0755}}
  - {src: %[4]s, dst: /usr/bin/ctr, file_info: {mode: 0755}}
  - {src: %[5]s, dst: /usr/bin/containerd-shim-runc-v2, file_info: {mode: 0755}}
  - {src: %[2]s/containerd.service, dst: /usr/lib/systemd/system/containerd.service, file_info: {mode: 0644}}
`

// stockPostinst does what the packages of containerd do: a running daemon is restarted on an upgrade.
const stockPostinst = `#!/bin/sh
set -e
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
[ "$1" != configure ] || [ -z "$2" ] || systemctl try-restart containerd
`

const stockUnit = `[Unit]
Description=containerd container runtime
After=network.target dbus.service
[Service]
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/bin/containerd
Type=notify
Delegate=yes
KillMode=process
Restart=always
RestartSec=5
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
OOMScoreAdjust=-999
[Install]
WantedBy=multi-user.target
`

func stock(t *tools.Tools, dir string) error {
	work, err := os.MkdirTemp(dir, "stock-")
	if err != nil {
		return errors.Wrap(err, "cannot make a directory for containerd's package")
	}
	defer os.RemoveAll(work)
	programs := []any{"amd64", work}
	for _, name := range []string{"containerd", "ctr", "containerd-shim-runc-v2"} {
		program := filepath.Join(work, name)
		if err := build(t, program, "github.com/containerd/containerd/v2/cmd/"+name); err != nil {
			return err
		}
		programs = append(programs, program)
	}
	for name, text := range map[string]string{
		"nfpm.yaml": fmt.Sprintf(stockConfig, programs...), "stock-postinst.sh": stockPostinst, "containerd.service": stockUnit,
	} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o755); err != nil {
			return errors.Wrap(err, "cannot describe containerd's package")
		}
	}
	cmd := exec.Command("go", "tool", "nfpm", "package", "--config", filepath.Join(work, "nfpm.yaml"), "--packager", "deb",
		"--target", filepath.Join(dir, Stock))
	cmd.Dir = filepath.Join(filepath.Dir(t.Module), "hack", "package")
	out, err := cmd.CombinedOutput()
	return errors.Wrapf(err, "cannot build containerd's package: %s", out)
}
