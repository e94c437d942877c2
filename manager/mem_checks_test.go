// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	goruntime "runtime"
	"testing"
	"testing/synctest"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/typeurl/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
)

func stateOf(i *Instance) life.State {
	st, _ := i.watch()
	return st
}

func processStateOf(p *shimproc.Process) shimproc.State {
	_, st, _ := p.Watch()
	return st
}

// fallSilent has a Connect of the process left unanswered.
func fallSilent(p *shimproc.Process) {
	l, _, _ := p.Watch()
	p.OnSilent(l)
}

type waited struct {
	exit *runtime.Exit
	err  error
}

// startWait waits in the background for init ("") or an exec.
func startWait(ctx context.Context, i *Instance, execID string) <-chan waited {
	ch := make(chan waited, 1)
	go func() {
		exit, err := i.wait(ctx, execID)
		ch <- waited{exit, err}
	}()
	return ch
}

// pending requires that a Wait has not ended however long it takes.
func pending(t *testing.T, ch <-chan waited) {
	t.Helper()
	time.Sleep(10 * time.Minute)
	synctest.Wait()
	select {
	case w := <-ch:
		require.FailNow(t, "the Wait has ended", "%+v", w)
	default:
	}
}

func ends(t *testing.T, ch <-chan waited, status uint32) {
	t.Helper()
	w := <-ch
	require.NoError(t, w.err)
	require.Equal(t, status, w.exit.Status)
}

func exitOf(pid, status uint32) bundle.Exit {
	return bundle.Exit{Pid: pid, Status: status, At: time.Now().UTC()}
}

func exitEvent(container, id string, pid, status uint32) *apievents.TaskExit {
	return &apievents.TaskExit{ContainerID: container, ID: id, Pid: pid, ExitStatus: status,
		ExitedAt: timestamppb.Now()}
}

// hear lets an event come to the manager as from the exchange.
func hear(t *testing.T, m *ShimManager, namespace string, event any) {
	t.Helper()
	a, err := typeurl.MarshalAny(event)
	require.NoError(t, err)
	m.heard(&events.Envelope{Namespace: namespace, Event: a})
}

// sent is an event as it comes from the exchange.
func sent(t *testing.T, at time.Time, event any) *events.Envelope {
	t.Helper()
	a, err := typeurl.MarshalAny(event)
	require.NoError(t, err)
	return &events.Envelope{Namespace: testNamespace, Event: a, Timestamp: at}
}

// The times at which exits are told, as DESIGN promises them.
const (
	ownRetries       = time.Minute      // after the exit, where the shim does not tell it
	youth            = 30 * time.Second // of the daemon: what is told then is told again
	repeats          = 3                // times
	firstRepeatPause = 5 * time.Second  // doubled each time
)

// requireNoLoop requires that no goroutine is in the method of an instance.
func requireNoLoop(t *testing.T, method string) {
	t.Helper()
	require.NotContains(t, stacks(), "(*Instance)."+method+"(")
}

// stacks of all goroutines.
func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:goruntime.Stack(b, true)])
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
