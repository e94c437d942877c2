// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/pkg/errors"
)

type installOptions struct {
	name             string
	script, unmarked bool
}

// InstallOption changes what Install makes.
type InstallOption func(*installOptions)

// WithName names the binary; it must begin with "containerd-shim-". The default is containerd-shim-fake-v1.
func WithName(name string) InstallOption { return func(o *installOptions) { o.name = name } }

// WithScript makes Path a shell script that executes the binary, so that the file tells nothing about the protocol.
func WithScript() InstallOption { return func(o *installOptions) { o.script = true } }

// WithoutMarker makes a binary that does not contain the name of the bootstrap protocol's package, as shims that are
// older than the protocol do not. It understands the protocol nonetheless: which it speaks is for Scenario.Generation.
func WithoutMarker() InstallOption { return func(o *installOptions) { o.unmarked = true } }

// Install makes a fake shim that follows s. When the test ends, it fails the test if processes or sockets of the fake
// are left, and then removes them. It skips the test where there is no /proc.
func Install(t testing.TB, s Scenario, opts ...InstallOption) *Shim {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("fake shims need Linux")
	}
	if !dispatched.Load() {
		t.Fatal("shimtest.Dispatch must be called first in TestMain")
	}
	o := installOptions{name: shimPrefix + "fake-v1"}
	for _, opt := range opts {
		opt(&o)
	}
	home, err := makeHome()
	if err != nil {
		t.Fatal(err)
	}
	sh := &Shim{t: t, Home: home, binary: filepath.Join(home, o.name)}
	t.Cleanup(sh.cleanup)
	if err := sh.install(s, o); err != nil {
		t.Fatal(err)
	}
	return sh
}

// makeHome makes a directory whose path leaves room for the name of a socket.
func makeHome() (string, error) {
	for _, dir := range []string{"", "/tmp"} {
		home, err := os.MkdirTemp(dir, "sy")
		if err != nil {
			return "", errors.Wrap(err, "making the directory of a fake shim")
		}
		if home, err = filepath.EvalSymlinks(home); err != nil {
			return "", errors.Wrap(err, "resolving the directory of a fake shim")
		}
		if len(home) < 30 {
			return home, nil
		}
		_ = os.Remove(home)
	}
	return "", errors.New("cannot make a directory with a short path for a fake shim")
}

func (sh *Shim) install(s Scenario, o installOptions) error {
	for _, dir := range []string{"counters", "s", "script"} {
		if err := os.Mkdir(filepath.Join(sh.Home, dir), 0o700); err != nil {
			return errors.Wrap(err, "laying out the fake shim")
		}
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		return errors.Wrap(err, "reading the test's own start time")
	}
	me, _ := json.Marshal(owner{os.Getpid(), start})
	if err := os.WriteFile(ownerPath(sh.Home), me, 0o600); err != nil {
		return errors.Wrap(err, "writing the owner")
	}
	if err := os.WriteFile(filepath.Join(sh.Home, traceFile), nil, 0o600); err != nil {
		return errors.Wrap(err, "making the trace")
	}
	if err := storeScenario(sh.Home, &s); err != nil {
		return err
	}
	if err := placeBinary(sh.binary, o.unmarked); err != nil {
		return err
	}
	guest := filepath.Join(sh.Home, guestName)
	if fake, err := original(); err != nil || os.Link(fake, guest) != nil {
		if err := placeBinary(guest, false); err != nil {
			return err
		}
	}
	sh.Path = sh.binary
	if o.script {
		sh.Path = filepath.Join(sh.Home, "script", o.name)
		return writeExecutable(sh.Path, strings.NewReader(fmt.Sprintf("#!/bin/sh\nexec %q \"$@\"\n", sh.binary)))
	}
	return nil
}

// placeBinary copies the fake. A hard link would do for running it, but would share its identity, and each
// further link changes the ctime of all: a cache keyed by a file's identity would see an upgraded binary.
func placeBinary(path string, unmarked bool) error {
	fake, err := original()
	if err != nil {
		return err
	}
	src, err := os.Open(fake)
	if err != nil {
		return errors.Wrap(err, "opening the fake")
	}
	defer src.Close()
	if !unmarked {
		return writeExecutable(path, src)
	}
	data, err := io.ReadAll(src)
	if err != nil {
		return errors.Wrap(err, "reading the fake")
	}
	// The package's descriptor names itself consistently afterwards, and names are not sent over the wire.
	marker := []byte("containerd.runtime.bootstrap.v1")
	return writeExecutable(path, bytes.NewReader(bytes.ReplaceAll(data, marker,
		[]byte("containerd.runtime.bootstrap.xx"))))
}

// writeExecutable writes a file that can be executed at once. No fork of this process may happen while the file is
// open for writing, because the child would keep it so and the exec would fail with ETXTBSY.
func writeExecutable(path string, content io.Reader) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return errors.Wrap(err, "making an executable")
	}
	_, err = io.Copy(f, content)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return errors.Wrapf(err, "writing %s", path)
}
