// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// sandbox starts one whose shim is the fake.
func (n *node) sandbox(id string, shim *shimtest.Shim) containerd.Sandbox {
	n.t.Helper()
	sb, err := n.Client().NewSandbox(n.ctx, id,
		containerd.WithSandboxRuntime(shim.Path, nil),
		containerd.WithSandboxSpec(&oci.Spec{}))
	require.NoError(n.t, err)
	require.NoError(n.t, sb.Start(n.ctx))
	return sb
}

func inSandbox(id string) setupOpt {
	return func(s *setup) { s.extra = append(s.extra, containerd.WithSandbox(id)) }
}

// The containers of a sandbox run in its shim, over restarts too; the sandbox
// itself is no task.
func TestSandbox(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		for _, transport := range []string{"ttrpc", "grpc"} {
			t.Run(name+" "+transport, func(t *testing.T) {
				t.Parallel()
				needRoot(t)
				shim := shimtest.Install(t, shimtest.Scenario{Sandbox: true, Transport: transport})
				n := newNode(t)
				n.sandbox("pod", shim)
				n.run("one", spec("sleep"), fake(shim), inSandbox("pod"))
				n.run("two", spec("sleep"), fake(shim), inSandbox("pod"))
				require.Len(t, shim.Procs(shimtest.RoleDaemon), 1)
				_, err := n.Client().LoadContainer(n.ctx, "pod")
				require.ErrorIs(t, err, errdefs.ErrNotFound)

				end(n)
				n.Run()
				require.Equal(t, containerd.Running, n.taskOf("one").status())
				n.taskOf("one").finish()
				n.run("three", spec("sleep"), fake(shim), inSandbox("pod"))
				require.Len(t, shim.Procs(shimtest.RoleDaemon), 1, "who comes later joins it")
				n.taskOf("two").finish()
				n.taskOf("three").finish()

				sb, err := n.Client().LoadSandbox(n.ctx, "pod")
				require.NoError(t, err)
				waited, err := sb.Wait(n.ctx)
				require.NoError(t, err)
				require.NoError(t, sb.Stop(n.ctx))
				status := <-waited
				require.NoError(t, status.Error())
				require.NoError(t, sb.Shutdown(n.ctx))
				shim.AwaitNoProcs()
			})
		}
	}
}

// Clients rely on these classes for a sandbox that nobody knows.
func TestUnknownSandbox(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.Client().SandboxController("shim")
	status, err := c.Status(n.ctx, "unknown", false)
	require.NoError(t, err)
	require.False(t, status.ExitedAt.IsZero())
	require.NoError(t, c.Stop(n.ctx, "unknown"))
	_, err = c.Wait(n.ctx, "unknown")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.ErrorIs(t, c.Shutdown(n.ctx, "unknown"), errdefs.ErrNotFound)
}

// The death of a sandbox's shim ends the sandbox and the containers in it.
func TestSandboxShimKilled(t *testing.T) {
	t.Parallel()
	needRoot(t)
	shim := shimtest.Install(t, shimtest.Scenario{Sandbox: true})
	n := newNode(t)
	log := n.watch()
	sb := n.sandbox("pod", shim)
	j := n.run("one", spec("sleep"), fake(shim), inSandbox("pod"))
	e := j.waiting()
	waited, err := sb.Wait(n.ctx)
	require.NoError(t, err)
	require.NoError(t, shim.Daemon("pod").Kill())
	require.NotZero(t, e.code())
	<-waited
	log.waitFor("/tasks/exit", "one")
	log.waitFor("/tasks/delete", "one")
	require.NoError(t, sb.Shutdown(n.ctx))
	j.b.remove()
}
