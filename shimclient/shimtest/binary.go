// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/pkg/errors"
)

// fakeshim is the package of the fake shim as a program of its own.
const fakeshim = "github.com/shimyard/shimyard/shimclient/shimtest/fakeshim"

// lean is the fake shim built without the race detector. With it a process takes four times as long to start, and a
// create starts three; its subject is the code under test, not the fake, whose own tests execute themselves.
type lean struct {
	cmd  *exec.Cmd // made before a test can change directory or environment
	dir  string
	once sync.Once
	err  error
}

// installed is what Install makes copies of, if not of the test binary itself.
var installed *lean

// newLean prepares the program; it is built when it is first needed, and then taken from Go's cache.
func newLean() *lean {
	cmd := exec.Command("go", "run", "-race=false", "-ldflags=-s -w", "-exec", "cp", fakeshim)
	cmd.Env = os.Environ()
	cmd.Dir, _ = os.Getwd()
	return &lean{cmd: cmd}
}

func (l *lean) build() (string, error) {
	l.once.Do(func() {
		if l.dir, l.err = os.MkdirTemp("", "sy"); l.err != nil {
			return
		}
		l.cmd.Args = append(l.cmd.Args, l.path())
		if out, err := l.cmd.CombinedOutput(); err != nil {
			l.err = errors.Wrapf(err, "%s: %s", l.cmd, out)
		}
	})
	return l.path(), errors.Wrap(l.err, "building the fake shim without the race detector")
}

func (l *lean) path() string { return filepath.Join(l.dir, "fakeshim") }

func (l *lean) remove() {
	if l.dir != "" {
		_ = os.RemoveAll(l.dir)
	}
}

// original is the file that an install is a copy of.
func original() (string, error) {
	if installed != nil {
		return installed.build()
	}
	self, err := os.Executable()
	return self, errors.Wrap(err, "finding the test binary")
}
