// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The daemon goes away, in either way, at random points of creates and deletes.
// The next one finds all that was made: it is a task, or it is cleaned up.
func TestGoneAmidCreates(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.AllowEmptyCgroups()
			typical := n.timeToCreate()
			for round := range 8 {
				var g errgroup.Group
				for i := range 4 {
					id := fmt.Sprintf("amid-%d-%d", round, i)
					g.Go(func() error {
						for { // until the daemon is gone
							j, err := n.tryRun(id, forever())
							if err == nil {
								_, err = j.Delete(n.ctx, containerd.WithProcessKill)
							}
							if err == nil {
								err = j.b.Delete(n.ctx, containerd.WithSnapshotCleanup)
							}
							if err != nil {
								return nil
							}
						}
					})
				}
				time.Sleep(time.Duration(rand.Int64N(int64(5 * typical))))
				end(n)
				require.NoError(t, g.Wait())
				n.Run()
			}
			n.deleteEverything()
			n.Stop() // what is idle ends with a clean stop
			n.Run()
			n.deleteEverything()
		})
	}
}

// A shim that is stalled while the daemon restarts is as alive as its container.
func TestStalledOverRestart(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			stalled := n.run("stalled", obedient(7))
			n.run("fine", obedient(8))
			pid := stalled.Pid()
			shim := n.shimPid(testNS, "stalled")
			require.NoError(t, unix.Kill(shim, unix.SIGSTOP))
			end(n)
			n.Run()
			list, err := n.Client().TaskService().List(n.ctx, &tasks.ListTasksRequest{})
			require.NoError(t, err)
			require.Len(t, list.Tasks, 2)
			n.taskOf("fine").obey(8)
			require.True(t, runs(pid))
			require.NoError(t, unix.Kill(shim, unix.SIGCONT))
			require.Eventually(t, func() bool {
				task, err := n.load("stalled").Task(n.ctx, nil)
				return err == nil && task.Pid() == pid
			}, patience, tick)
			n.taskOf("stalled").obey(7)
		})
	}
}
