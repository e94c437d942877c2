// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"
)

// Crate is a program of a crate on crates.io.
type Crate struct {
	// Name and Version are the crate's, Features are those that it is built with.
	Name, Version string
	Features      []string
	// Program is what it installs.
	Program string
}

// Crate builds it with cargo, with the versions of its own lock file, and returns the path. What is on crates.io does
// not change, so that one which was built is used as it is. The error wraps ErrMissing where cargo is not installed.
func (k *Kit) Crate(c Crate) (string, error) {
	name := strings.Join(append([]string{c.Name, c.Version}, c.Features...), "-")
	dst := filepath.Join(k.Tools.Dir, "crates", name)
	if fi, err := os.Stat(dst); err == nil && fi.Mode().IsRegular() {
		return dst, nil
	}
	if _, err := exec.LookPath("cargo"); err != nil {
		return "", errors.Wrapf(ErrMissing, "cargo is not installed, which builds %s %s", c.Name, c.Version)
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return "", errors.Wrap(err, "cannot make a directory for programs")
	}
	tmp, err := os.MkdirTemp(k.Tools.Dir, ".crate-")
	if err != nil {
		return "", errors.Wrap(err, "cannot make a directory to build a crate in")
	}
	defer os.RemoveAll(tmp)
	fmt.Fprintf(k.Progress, "tools: building %s with cargo, which takes minutes …\n", name)
	args := []string{"install", "--locked", "--debug", "--root", tmp, "--version", "=" + c.Version}
	if len(c.Features) > 0 {
		args = append(args, "--features", strings.Join(c.Features, ","))
	}
	cmd := exec.Command("cargo", append(args, c.Name)...)
	cmd.Dir = tmp
	// Fast to build rather than fast: it is to be right.
	cmd.Env = append(os.Environ(), "CARGO_TARGET_DIR="+filepath.Join(tmp, "target"), "CARGO_INCREMENTAL=0",
		"CARGO_PROFILE_DEV_DEBUG=0", "CARGO_PROFILE_DEV_OPT_LEVEL=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Wrapf(err, "cannot build %s: %s", name, out)
	}
	return dst, errors.Wrapf(os.Rename(filepath.Join(tmp, "bin", c.Program), dst), "cannot put %s in place", name)
}
