// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"strings"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/report"
)

const (
	callers = 4
	// getCount, killCount and eventCount are what one measurement does of each, with as many containers as make bench has.
	getCount   = 4000
	killCount  = 200
	eventCount = 8000
)

// calls asks for, and signals, one task over and over, some clients at once, and publishes events.
func (b *bench) calls() {
	section := fmt.Sprintf("Calls a second, %d at once", callers)
	row := func(name string) *report.Row {
		return b.results.Add(report.Row{Section: section, Name: name, Unit: "/s", More: true})
	}
	for _, n := range b.daemons(0) {
		list, discard := b.prepared(contender{n.side, n.prepare}, "get", 1)
		defer discard()
		require.NoError(b.t, up(list[0]))
		defer func() { require.NoError(b.t, down(list[0])) }()
	}
	for _, kind := range []struct {
		row   *report.Row
		count int
		call  func(*benchNode) error
	}{
		{row("Get of one task"), getCount, (*benchNode).getOne},
		{row("Kill, with a signal that does nothing"), killCount, (*benchNode).signalOne},
	} {
		for pass := range b.passes {
			b.refresh()
			for _, n := range b.daemons(pass) {
				kind.row.Sample(n.side, b.callRate(n, kind.count, kind.call))
			}
		}
	}
	heard := row("events published, until a subscriber has heard all")
	for pass := range b.passes {
		b.refresh()
		for _, n := range b.daemons(pass) {
			heard.Sample(n.side, b.eventRate(n))
		}
	}
}

func (n *benchNode) getOne() error {
	_, err := n.Client().TaskService().Get(n.ctx, &tasks.GetRequest{ContainerID: "get-0"})
	return errors.Wrap(err, "cannot get a task")
}

func (n *benchNode) signalOne() error {
	_, err := n.Client().TaskService().Kill(n.ctx, &tasks.KillRequest{ContainerID: "get-0", Signal: uint32(unix.SIGCONT)})
	return errors.Wrap(err, "cannot signal a task")
}

// callRate is how often a second a call is answered.
func (b *bench) callRate(n *benchNode, count int, call func(*benchNode) error) float64 {
	count = max(callers, count*b.containers/48)
	var g errgroup.Group
	begin := time.Now()
	for range callers {
		g.Go(func() error {
			for range count / callers {
				if err := call(n); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(b.t, g.Wait())
	return float64(count/callers*callers) / time.Since(begin).Seconds()
}

// eventRate publishes exits of tasks that do not exist, as shims publish those of theirs, and listens.
func (b *bench) eventRate(n *benchNode) float64 {
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	prefix := fmt.Sprintf("none-%d-", time.Now().UnixNano())
	envelopes, failed := n.Client().Subscribe(ctx, `topic=="`+runtime.TaskExitEventTopic+`"`)
	count := max(callers, eventCount*b.containers/48)
	n.awaitSubscribed(ctx, envelopes)
	var g errgroup.Group
	begin := time.Now()
	for caller := range callers {
		g.Go(func() error {
			for i := range count / callers {
				if err := n.publish(ctx, fmt.Sprint(prefix, caller, "-", i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for got := 0; got < count/callers*callers; {
		select {
		case e := <-envelopes:
			if strings.Contains(string(e.Event.GetValue()), prefix) {
				got++
			}
		case err := <-failed:
			require.NoError(b.t, err, "the subscription has ended")
		case <-n.ctx.Done():
			require.Fail(b.t, "not all events have come", "%d of %d", got, count)
		}
	}
	took := time.Since(begin)
	require.NoError(b.t, g.Wait())
	return float64(count/callers*callers) / took.Seconds()
}

// probe is the id of an event that says nothing.
const probe = "probe"

func isProbe(e *events.Envelope) bool { return strings.Contains(string(e.Event.GetValue()), probe) }

// awaitSubscribed returns once events come through a subscription to exits.
func (n *benchNode) awaitSubscribed(ctx context.Context, envelopes <-chan *events.Envelope) {
	n.t.Helper()
	require.Eventually(n.t, func() bool {
		require.NoError(n.t, n.publish(ctx, probe))
		select {
		case <-envelopes:
			return true
		default:
			return false
		}
	}, patience, tick)
}

func (n *benchNode) publish(ctx context.Context, id string) error {
	err := n.Client().EventService().Publish(ctx, runtime.TaskExitEventTopic, &apievents.TaskExit{
		ContainerID: id, ID: id, Pid: 1, ExitStatus: 1,
	})
	return errors.Wrap(err, "cannot publish an event")
}
