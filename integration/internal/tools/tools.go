// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tools provides the programs that the integration tests and the demo
// run against: containerd as its own project builds it, runc, the runc shim of
// several containerd generations, busybox and the CNI plugins.
//
// It owns one directory (see Dir). A program that is already there is used as
// it is; a missing one is built with Go or taken out of a Debian package, which
// is only unpacked, never installed.
package tools

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pkg/errors"
)

const (
	// DirEnv names the directory that holds the tools; the default is
	// bin/tools in the root of the repository.
	DirEnv = "SHIMYARD_TOOLS"
	// DaemonEnv names the containerd binary to test; the default is the custom
	// daemon, built afresh. Everything but the differences from stock
	// containerd can be tried against a stock binary with it.
	DaemonEnv = "SHIMYARD_DAEMON"
)

// Tools finds, and where necessary makes, the programs. It is safe for
// concurrent use. Each method returns the absolute path of one program.
type Tools struct {
	// Dir is the directory of the tools.
	Dir string
	// Module is the directory of the integration module.
	Module string
	// Progress receives one line before and after each thing that takes long.
	Progress io.Writer

	mu sync.Mutex
}

// New uses $SHIMYARD_TOOLS, or bin/tools beside the integration module that
// holds the working directory.
func New(progress io.Writer) (*Tools, error) {
	module, err := moduleDir()
	if err != nil {
		return nil, err
	}
	dir := os.Getenv(DirEnv)
	if dir == "" {
		dir = filepath.Join(filepath.Dir(module), "bin", "tools")
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, errors.Wrap(err, "cannot make the tools directory absolute")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, errors.Wrap(err, "cannot make the tools directory")
	}
	return &Tools{Dir: dir, Module: module, Progress: progress}, nil
}

// Daemon is the containerd under test.
func (t *Tools) Daemon() (string, error) {
	if path := os.Getenv(DaemonEnv); path != "" {
		return filepath.Abs(path)
	}
	dst := filepath.Join(filepath.Dir(t.Module), "bin", "containerd")
	t.mu.Lock()
	defer t.mu.Unlock()
	return dst, t.build(dst, t.Module, "./containerd", "CGO_ENABLED=0")
}

const stockName = "containerd-stock"

// IsStock tells whether a program is what Stock returns.
func IsStock(path string) bool { return strings.HasPrefix(filepath.Base(path), stockName) }

// Stock is containerd as its own project builds it.
func (t *Tools) Stock() (string, error) {
	return t.goTool(stockName, t.Module, "github.com/containerd/containerd/v2/cmd/containerd", "CGO_ENABLED=0")
}

// Ctr is containerd's command line client.
func (t *Tools) Ctr() (string, error) {
	return t.goTool("ctr", t.Module, "github.com/containerd/containerd/v2/cmd/ctr", "CGO_ENABLED=0")
}

// Runc is the OCI runtime. It needs a C compiler.
func (t *Tools) Runc() (string, error) {
	return t.goTool("runc", t.Module, "github.com/opencontainers/runc", "CGO_ENABLED=1")
}

// Shim is the runc shim of the containerd release that this module requires.
func (t *Tools) Shim() (string, error) {
	return t.goTool(shimName, t.Module, "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
		"CGO_ENABLED=0")
}

// TracingShim is Shim with traces built in.
func (t *Tools) TracingShim() (string, error) {
	return t.goTool(filepath.Join("shim-tracing", shimName), t.Module,
		"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "CGO_ENABLED=0",
		"GOFLAGS="+os.Getenv("GOFLAGS")+" -tags=shim_tracing")
}

// Shim22 is the runc shim of containerd 2.2.
func (t *Tools) Shim22() (string, error) {
	return t.goTool(filepath.Join("shim-2.2", shimName), filepath.Join(t.Module, "legacy", "v2.2"),
		"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "CGO_ENABLED=0")
}

// Shim17 is the runc shim of containerd 1.7.
func (t *Tools) Shim17() (string, error) {
	return t.goTool(filepath.Join("shim-1.7", shimName), filepath.Join(t.Module, "legacy", "v1.7"),
		"github.com/containerd/containerd/cmd/containerd-shim-runc-v2", "CGO_ENABLED=0")
}

// Shim16 is the runc shim of containerd 1.6, as Debian packages it.
func (t *Tools) Shim16() (string, error) {
	return t.fromDeb(filepath.Join("shim-1.6", shimName), "containerd", "usr/bin/"+shimName)
}

// CNI is the loopback plugin; its directory is the one to configure.
func (t *Tools) CNI() (string, error) {
	return t.fromDeb(filepath.Join("cni", "loopback"), "containernetworking-plugins", "usr/lib/cni/loopback")
}

// Prometheus is what draws the dashboard's data together.
func (t *Tools) Prometheus() (string, error) {
	return t.fromDeb(filepath.Join("prometheus", "prometheus"), "prometheus", "usr/bin/prometheus")
}

// Crun is the other OCI runtime that is in wide use, as Debian has it, and the directory with those of its libraries
// that not each machine has.
func (t *Tools) Crun() (path, libraries string, err error) {
	dir, err := t.Unpack(DebianRoot{Name: "crun", Packages: []string{"crun", "libyajl2"}})
	if err != nil {
		return "", "", err
	}
	found, _ := filepath.Glob(filepath.Join(dir, "usr", "lib", "*", "libyajl.so.2")) // well-formed
	if len(found) == 0 {
		return "", "", errors.Wrap(ErrNoPackage, "crun: its library is not where it was")
	}
	return filepath.Join(dir, "usr", "bin", "crun"), filepath.Dir(found[0]), nil
}

// Busybox is a statically linked busybox, all that the test image holds.
func (t *Tools) Busybox() (string, error) {
	dst := filepath.Join(t.Dir, "busybox")
	if isFile(dst) {
		return dst, nil
	}
	for _, path := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if isFile(path) && static(path) {
			return path, nil
		}
	}
	return t.fromDeb("busybox", "busybox-static", "bin/busybox")
}

const shimName = "containerd-shim-runc-v2"

// goTool builds pkg in the module at dir, also where it is there already: with
// a warm cache that costs less than half a second and nothing is ever stale.
func (t *Tools) goTool(name, dir, pkg string, env ...string) (string, error) {
	dst := filepath.Join(t.Dir, name)
	t.mu.Lock()
	defer t.mu.Unlock()
	return dst, t.build(dst, dir, pkg, env...)
}

func (t *Tools) build(dst, dir, pkg string, env ...string) error {
	if !isFile(dst) {
		defer t.progress("building %s", pkg)()
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return errors.Wrapf(err, "cannot make a directory for %s", dst)
	}
	cmd := exec.Command("go", "build", "-o", dst, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return errors.Wrapf(err, "cannot build %s: %s", pkg, out)
}

// progress says what begins and, when the returned function is called, how
// long it took.
func (t *Tools) progress(format string, args ...any) func() {
	what, start := fmt.Sprintf(format, args...), time.Now()
	fmt.Fprintf(t.Progress, "tools: %s …\n", what)
	return func() {
		fmt.Fprintf(t.Progress, "tools: %s took %.0f s\n", what, time.Since(start).Seconds())
	}
}

// moduleDir walks up to the integration module.
func moduleDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", errors.Wrap(err, "cannot find the integration module")
	}
	for start := dir; ; dir = filepath.Dir(dir) {
		for _, candidate := range []string{dir, filepath.Join(dir, "integration")} {
			if isFile(filepath.Join(candidate, "internal", "tools", "tools.go")) {
				return candidate, nil
			}
		}
		if dir == filepath.Dir(dir) {
			return "", errors.Errorf("cannot find the integration module above %s: run this in the repository", start)
		}
	}
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

// static reports whether path is an ELF file that needs no dynamic linker.
func static(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}
