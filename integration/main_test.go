// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package integration tests the custom containerd with real shims, real
// containers and its real clients. Each test has a daemon of its own and ends
// with the check that nothing is left behind.
package integration

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/internal/daemon"
	"github.com/shimyard/shimyard/integration/internal/image"
	"github.com/shimyard/shimyard/integration/internal/tools"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

const imageName = "localhost/busybox:latest"

// kit is what every test runs against; TestMain prepares it once.
var kit struct {
	*tools.Tools
	daemon, runc, shim string
	image              []byte // tar of an OCI layout
}

func TestMain(m *testing.M) {
	shimtest.Dispatch()
	daemon.Role()
	if os.Getuid() == 0 {
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "integration: cannot prepare the tests:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func prepare() (err error) {
	if kit.Tools, err = tools.New(os.Stderr); err != nil {
		return err
	}
	if kit.runc, err = kit.Runc(); err != nil {
		return err
	}
	if kit.shim, err = kit.Shim(); err != nil {
		return err
	}
	if kit.daemon, err = kit.Daemon(); err != nil {
		return err
	}
	busybox, err := kit.Busybox()
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	if err := image.Write(&buf, imageName, busybox); err != nil {
		return err
	}
	kit.image = buf.Bytes()
	fmt.Fprintln(os.Stderr, "integration: testing", kit.daemon)
	return nil
}

// needRoot skips where there is no root: containers need it.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can run containers; run the tests as root to include this one")
	}
}

// tool returns the path of a program that a test needs, and skips where it
// cannot be had.
func tool(t *testing.T, get func() (string, error)) string {
	t.Helper()
	path, err := get()
	if err != nil && tools.Unavailable(err) {
		t.Skipf("a program that this test needs cannot be had here: %v", err)
	}
	require.NoError(t, err)
	return path
}

// patience is how long a condition is waited for; tick is how often it is
// looked at.
const (
	patience = daemon.Patience
	tick     = 10 * time.Millisecond
)
