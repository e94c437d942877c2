// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"fmt"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/pkg/errors"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

// A shim that falls silent, answers again and dies is one line each, which names it, whom it serves, and for how long
// it was silent.
func TestLinesForOperators(t *testing.T) {
	r, _ := idle(t)
	logger, hook := logtest.NewNullLogger()
	r.ctx = log.WithLogger(r.ctx, logrus.NewEntry(logger))
	var p *Process
	for n := range namedInLog + 2 {
		g := newGuest(fmt.Sprintf("task-%02d", n), n > 0)
		g.says.Binary.Runtime = "io.containerd.runc.v2"
		var err error
		p, _, err = r.Attach(g, nowhere, Origin{Launched: true, Group: "task-00"})
		require.NoError(t, err)
	}
	l := mute(t)
	p.put(Connected, time.Now())
	p.linkTo(l)
	p.OnSilent(l)
	p.answered(l)
	p.die("it is a test")
	var said []string
	for _, e := range hook.AllEntries() {
		said = append(said, e.Message)
		require.Equal(t, nowhere, e.Data["address"])
		require.Equal(t, "io.containerd.runc.v2", e.Data["runtime"])
		served, ok := e.Data["serves"].([]string)
		require.True(t, ok)
		require.Equal(t, "ns/task-00", served[0])
		require.Equal(t, "and 2 more", served[namedInLog])
	}
	require.Equal(t, []string{
		"shim does not answer; its containers are left alone and it is tried until it answers", "shim answers again",
		"shim is dead: it is a test",
	}, said)
	require.Contains(t, hook.AllEntries()[1].Data, "after")
}

// TestCodes are those of gRPC, by which calls are counted.
func TestCodes(t *testing.T) {
	require.Equal(t, "OK", codeOf(nil))
	require.Equal(t, "NotFound", codeOf(ErrDead))
	require.Equal(t, "DeadlineExceeded", codeOf(shimclient.ErrNoAnswer))
	require.Equal(t, "Unknown", codeOf(errors.New("runc")))
}

// TestWaitsAreNotCounted: a Wait lasts as long as its container.
func TestWaitsAreNotCounted(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, metrics.Register(r, "v0", "v0"))
	count := func() int {
		n, err := testutil.GatherAndCount(r, "shimyard_rpcs_total")
		require.NoError(t, err)
		return n
	}
	was := count()
	observe("Wait", nil, time.Hour)
	observe("WaitSandbox", nil, time.Hour)
	require.Equal(t, was, count())
	observe("TestOfReport", nil, time.Second)
	require.Equal(t, was+1, count())
}
