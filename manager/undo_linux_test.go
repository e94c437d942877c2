// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// giveUpOnCreate creates a task in a sandbox and gives up as soon as the container exists in its shim, which does not
// say so.
func (y *yard) giveUpOnCreate(id, box string) {
	y.Helper()
	guests := len(y.shim.Procs(shimtest.RoleGuest))
	ctx, cancel := context.WithCancel(y.ctx)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := y.tasks.Create(ctx, id, y.inBox(box))
		failed <- err
	}()
	y.until("the container exists", func() bool { return len(y.shim.Procs(shimtest.RoleGuest)) == guests+1 })
	cancel()
	require.ErrorIs(y, <-failed, context.Canceled)
	require.NotNil(y, y.instance(id), "the id is reserved")
}

// TestGivenUpCreateIsUndone in a shim that serves others, which then end it in the orderly way: also by the next
// daemon, if the one that it was given up under is gone before the shim has answered.
func TestGivenUpCreateIsUndone(t *testing.T) {
	for _, c := range []struct {
		name    string
		restart bool
	}{{"by the daemon", false}, {"by the next daemon", true}} {
		t.Run(c.name, func(t *testing.T) {
			y := newYard(t, shimtest.Scenario{Sandbox: true, Rules: []shimtest.Rule{
				{Method: "Create", ID: "c1", Hang: true, After: true},
				{Method: "Delete", ID: "c1", Hang: true},
			}})
			y.box("s1")
			y.giveUpOnCreate("c1", "s1")
			require.Empty(t, y.shim.Find(shimtest.KindAnswer, "Create"), "the shim has not answered yet")
			if c.restart {
				y.restart()
				y.inState("c1", life.Reaping)
			}
			_, err := y.tasks.Get(y.ctx, "c1")
			require.True(t, errdefs.IsNotFound(err), "%v", err)
			y.shim.Update(func(s *shimtest.Scenario) { s.Rules = nil })
			_, err = y.tasks.Create(y.ctx, "c1", y.inBox("s1"))
			require.NoError(t, err, "the next create waits for the undo")
			require.Len(t, y.shim.Procs(shimtest.RoleGuest), 2, "the sandbox's and the new one")
			y.remove("c1")
			require.NoError(t, y.boxes.Shutdown(y.ctx, "s1"))
			y.empty()
			require.Empty(t, y.shim.Procs())
		})
	}
}
