// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// soakEnv is how many rounds are made, where it is set.
const soakEnv = "SHIMYARD_SOAK"

// Hundreds of rounds of create, start, kill and delete leave the daemon with the
// file descriptors and goroutines that it began with; the leftovers check looks.
// What leaks in one round of some thousand is for `make soak`.
func TestSoak(t *testing.T) {
	t.Parallel()
	rounds := 300
	if text := os.Getenv(soakEnv); text != "" {
		var err error
		rounds, err = strconv.Atoi(text)
		require.NoError(t, err, soakEnv)
	}
	address := freeAddress(t)
	n := newNode(t, withMetrics(address))
	fds, goroutines := n.Usage()
	n.soak(rounds)
	require.Empty(t, n.Leftovers())
	scrapeFew(t, address)
	fdsNow, goroutinesNow := n.Usage()
	t.Logf("file descriptors %d, then %d; goroutines %d, then %d", fds, fdsNow, goroutines, goroutinesNow)
}

// soak makes the rounds, four at a time, each container's task anew.
func (n *node) soak(rounds int) {
	n.t.Helper()
	const workers = 4
	var g errgroup.Group
	var done atomic.Int64
	for w := range workers {
		b := n.create(fmt.Sprint("soak-", w), forever())
		g.Go(func() error {
			for done.Add(1) <= int64(rounds) {
				if err := b.round(); err != nil {
					return errors.Wrapf(err, "in round %d", done.Load())
				}
			}
			return b.Delete(b.ctx, containerd.WithSnapshotCleanup)
		})
	}
	require.NoError(n.t, g.Wait())
}

// round creates, starts, kills and deletes a task.
func (b *box) round() error {
	task, err := b.NewTask(b.ctx, cio.NullIO)
	if err != nil {
		return errors.Wrap(err, "create")
	}
	ch, err := task.Wait(b.ctx)
	if err != nil {
		return errors.Wrap(err, "wait")
	}
	if err := task.Start(b.ctx); err != nil {
		return errors.Wrap(err, "start")
	}
	if err := task.Kill(b.ctx, unix.SIGKILL); err != nil {
		return errors.Wrap(err, "kill")
	}
	status := <-ch
	if code, _, err := status.Result(); err != nil || code != 137 {
		return errors.Errorf("exit %d (%v) instead of 137", code, err)
	}
	_, err = task.Delete(b.ctx)
	return errors.Wrap(err, "delete")
}
