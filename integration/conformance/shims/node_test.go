// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/box"
	"github.com/shimyard/shimyard/integration/conformance/procs"
	"github.com/shimyard/shimyard/integration/conformance/suite"
)

const (
	image     = "ghcr.io/containerd/busybox:1.36"
	namespace = "shims"
	config    = "version = 3\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n"
)

// node is the daemon under test, whose shim is one of another generation. Each generation has directories of its own.
type node struct {
	*suite.Daemon
	t      *testing.T
	g      Generation
	client *client.Client
}

// each runs the test with every generation.
func each(t *testing.T, test func(n *node)) {
	for _, g := range Generations {
		t.Run(g.Name, func(t *testing.T) { test(start(t, g, false)) })
	}
}

// start starts the daemon under test, or that of stock, with the shim in its PATH.
func start(t *testing.T, g Generation, stock bool) *node {
	t.Helper()
	site := suite.Attach(t)
	if reason, ok := site.Data[g.lacks()]; ok {
		t.Skip(reason)
	}
	test, _, _ := strings.Cut(t.Name(), "/")
	if reason, ok := g.Cannot[test]; ok {
		t.Skip(reason)
	}
	dir := filepath.Join(box.Dir, "shims", g.Name)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	link(t, g.Program(), filepath.Join(dir, "containerd-shim-runc-v2"))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if stock {
		asStock(t)
	}
	d, err := site.Daemon(t.Context(), suite.DaemonOptions{Config: config, Suffix: "-" + g.Name})
	require.NoError(t, err)
	n := &node{Daemon: d, t: t, g: g}
	t.Cleanup(func() { require.NoError(t, n.Daemon.Stop()) })
	n.connect()
	_, err = n.client.Pull(t.Context(), image, client.WithPullUnpack)
	require.NoError(t, err)
	return n
}

// link gives one of the box's programs a further name.
func link(t *testing.T, program, path string) {
	t.Helper()
	err := os.Link(filepath.Join(box.Programs, program), path)
	if !os.IsExist(err) {
		require.NoError(t, err)
	}
}

// stockDir holds stock's daemon under the name that it is looked for.
var stockDir = filepath.Join(box.Dir, "stock")

// asStock has the containerd in PATH be that of stock.
func asStock(t *testing.T) {
	t.Helper()
	require.NoError(t, os.MkdirAll(stockDir, 0o755))
	link(t, StockProgram, filepath.Join(stockDir, "containerd"))
	t.Setenv("PATH", stockDir+":"+os.Getenv("PATH"))
}

// asUnderTest takes that back.
func asUnderTest(t *testing.T) {
	t.Helper()
	t.Setenv("PATH", strings.TrimPrefix(os.Getenv("PATH"), stockDir+":"))
}

// connect is due after each start of the daemon.
func (n *node) connect() {
	n.t.Helper()
	if n.client != nil {
		n.client.Close()
	}
	var err error
	n.client, err = client.New(n.Address, client.WithDefaultNamespace(namespace))
	require.NoError(n.t, err)
}

// up starts the daemon again.
func (n *node) up() {
	n.t.Helper()
	require.NoError(n.t, n.Start(n.t.Context()))
	n.connect()
}

// down ends it.
func (n *node) down(sig syscall.Signal) {
	n.t.Helper()
	if sig == syscall.SIGKILL {
		require.NoError(n.t, n.Kill())
	} else {
		require.NoError(n.t, n.Daemon.Stop())
	}
}

// within is a context of a call that must not take for ever.
func (n *node) within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), procs.Patience)
}
