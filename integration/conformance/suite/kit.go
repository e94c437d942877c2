// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/internal/tools"
)

// ErrMissing says that the machine lacks a program that a suite cannot do without.
var ErrMissing = errors.New("this machine cannot run it")

// Kit builds and finds what suites need, on the machine. It adds upstream modules to what the integration tests have.
type Kit struct {
	*tools.Tools
	// Module is the directory of this module.
	Module string
}

// NewKit uses the directory of tools that the integration tests use.
func NewKit(t *tools.Tools) *Kit {
	return &Kit{Tools: t, Module: filepath.Join(t.Module, "conformance")}
}

// Source is an upstream module whose programs or tests are built in its own tree, with its own go.mod.
type Source struct {
	Path, Version string
	// Sum is its checksum, as in go.sum.
	Sum string
}

// Dir downloads the module, where the cache does not have it, and returns its directory, which is read-only.
func (k *Kit) Dir(s Source) (string, error) {
	cmd := exec.Command("go", "mod", "download", "-json", s.Path+"@"+s.Version)
	cmd.Dir = k.Module
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", errors.Wrapf(err, "cannot download %s: %s%s", s.Path, out, stderr.Bytes())
	}
	var have struct{ Dir, Sum string }
	if err := json.Unmarshal(out, &have); err != nil {
		return "", errors.Wrapf(err, "cannot read what was downloaded of %s", s.Path)
	}
	if have.Sum != s.Sum {
		return "", errors.Errorf("%s %s has the checksum %s, want %s", s.Path, s.Version, have.Sum, s.Sum)
	}
	return have.Dir, nil
}

// Build says how to build one program.
type Build struct {
	// Name is the program's, Dir the directory of the module that it is built in, Package what to build.
	Name, Dir, Package string
	// Test builds the package's tests.
	Test bool
	// Flags and Env are further ones for the go command.
	Flags, Env []string
}

// Build builds it and returns the path. With a warm cache that takes a moment, and nothing is ever stale.
func (k *Kit) Build(b Build) (string, error) {
	dst := filepath.Join(k.Tools.Dir, "conformance", b.Name)
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return "", errors.Wrap(err, "cannot make a directory for programs")
	}
	args := []string{"build"}
	if b.Test {
		args = []string{"test", "-c", "-vet=off"}
	}
	args = append(append(args, b.Flags...), "-o", dst, b.Package)
	cmd := exec.Command("go", args...)
	cmd.Dir = b.Dir
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off"), b.Env...)
	out, err := cmd.CombinedOutput()
	return dst, errors.Wrapf(err, "cannot build %s: %s", b.Package, out)
}

// Own builds a package of this module.
func (k *Kit) Own(name, pkg string, test bool) (string, error) {
	return k.Build(Build{Name: name, Dir: k.Module, Package: pkg, Test: test})
}

// Containerd is the directory of the containerd module that the daemons are built from.
func (k *Kit) Containerd() (string, error) {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/containerd/containerd/v2")
	cmd.Dir = k.Tools.Module
	out, err := cmd.Output()
	if err != nil {
		return "", errors.Wrap(err, "cannot find the containerd module")
	}
	return strings.TrimSpace(string(out)), nil
}

// Debian unpacks packages into a layer for the box, see Plan.Layers. What they depend on must be named, too, or be on
// every machine.
func (k *Kit) Debian(name string, links map[string]string, packages ...string) (string, error) {
	return k.Unpack(tools.DebianRoot{Name: name, Packages: packages, Links: links})
}
