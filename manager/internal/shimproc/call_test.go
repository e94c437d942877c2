// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/pkg/timeout"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient"
)

// TestCallThatSeesTheLossFirst: a call may fail for want of a connection before that is given up. What becomes of the
// process is waited for all the same.
func TestCallThatSeesTheLossFirst(t *testing.T) {
	for name, c := range map[string]struct {
		then func(*testing.T, *Process)
		want error
	}{
		"dead": {func(_ *testing.T, p *Process) { p.die("test") }, ErrDead},
		"connected again": {func(t *testing.T, p *Process) {
			require.NoError(t, p.OnConnected(mute(t).Conn))
		}, shimclient.ErrConnectionLost},
		// Its socket accepts until its last thread is gone.
		"accepted by a dying one": {func(t *testing.T, p *Process) {
			l := mute(t)
			require.NoError(t, p.OnConnected(l.Conn))
			synctest.Wait()
			require.NoError(t, l.Conn.Close())
			p.OnLost()
			p.die("test")
		}, ErrDead},
		"accepted and dropped for ever": {func(t *testing.T, p *Process) {
			for until := time.Now().Add(2 * timeout.Get(TimeoutLoad)); time.Now().Before(until); {
				l := mute(t)
				require.NoError(t, p.OnConnected(l.Conn))
				time.Sleep(100 * time.Millisecond)
				require.NoError(t, l.Conn.Close())
				p.OnLost()
			}
		}, shimclient.ErrConnectionLost},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, _ := idleIn(t)
				p, _, err := r.Attach(newGuest("c1", false), nowhere, Origin{Launched: true})
				require.NoError(t, err)
				require.NoError(t, p.OnConnected(mute(t).Conn))
				answers := make(chan error, 1)
				go func() {
					answers <- p.Call(t.Context(), Forced,
						func(context.Context, *Link) error { return shimclient.ErrConnectionLost })
				}()
				synctest.Wait()
				require.Empty(t, answers, "it is not known yet what becomes of the shim")
				p.OnLost()
				synctest.Wait()
				require.Empty(t, answers)
				c.then(t, p)
				require.ErrorIs(t, <-answers, c.want)
			})
		})
	}
}
