// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/stretchr/testify/require"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/daemon"
	"github.com/shimyard/shimyard/integration/internal/otlp"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// secret is in what clients give for a container, and must be in no span.
const secret = "s3cr3t"

// tracedShim begins the service that a shim names itself, before its id; tracedDaemon is that of the daemon.
const (
	tracedShim   = "containerd-shim-"
	tracedDaemon = "containerd"
)

// newTracedNode is a node whose daemon and shims send their spans to a collector.
func newTracedNode(t *testing.T) (*node, *otlp.Collector) {
	needRoot(t)
	shim, err := kit.TracingShim()
	require.NoError(t, err)
	c := otlp.Start(t)
	return newNode(t, func(o *daemon.Options) {
		o.Plugins = append(o.Plugins, "tracing")
		o.Path[0] = filepath.Dir(shim)
		o.Extra = pooled // whose shim is a warm one is told below
		o.Env = append(c.Env(), "OTEL_SERVICE_NAME="+tracedDaemon)
		o.ShimEnv = []string{"SAMPLE=" + secret}
	}), c
}

// pooled is the default, in whatever mode the tests run.
const pooled = `
[plugins.'io.containerd.shim.v1.manager'.runtimes.'io.containerd.runc.v2']
warm = 4
share = 1
`

// tracing waits for spans of a name about an id.
type tracing struct {
	*otlp.Collector
	t *testing.T
}

func (c tracing) of(id, name string, count int) []otlp.Span {
	c.t.Helper()
	var found []otlp.Span
	require.Eventually(c.t, func() bool {
		found = c.Spans(func(s otlp.Span) bool {
			return s.Name == name && (id == "" || s.Attributes["task.id"] == id || s.Attributes["sandbox.id"] == id)
		})
		return len(found) == count
	}, patience, tick, "%d spans %s of %q", count, name, id)
	return found
}

// above is the span right above one.
func (c tracing) above(s otlp.Span) (parent otlp.Span) {
	c.t.Helper()
	require.Eventually(c.t, func() bool {
		found := c.Spans(func(p otlp.Span) bool { return p.Trace == s.Trace && p.ID == s.ParentID })
		if len(found) == 1 {
			parent = found[0]
		}
		return len(found) == 1
	}, patience, tick, "what is above %s", s.Name)
	return parent
}

// steps are the names of the spans right below one, the sides of calls left out.
func (c tracing) steps(s otlp.Span) (names []string) {
	for _, child := range c.Children(s) {
		if child.Kind == tracepb.Span_SPAN_KIND_INTERNAL {
			names = append(names, child.Name)
		}
	}
	return names
}

// steps are the names of a create's.
func steps(of ...string) (names []string) {
	for _, step := range of {
		names = append(names, "runtime.task.Create."+step)
	}
	return names
}

// call checks that a span has the call to the shim below it, and that the shim's own span is below that.
func (c tracing) call(s otlp.Span, name string) {
	c.t.Helper()
	var call []otlp.Span
	require.Eventually(c.t, func() bool {
		call = slices.DeleteFunc(c.Children(s), func(s otlp.Span) bool { return s.Name != name })
		return len(call) == 1
	}, patience, tick, "the call %s below %s", name, s.Name)
	require.Equal(c.t, tracepb.Span_SPAN_KIND_CLIENT, call[0].Kind)
	require.Equal(c.t, tracedDaemon, call[0].Service)
	require.Eventually(c.t, func() bool {
		return slices.ContainsFunc(c.Children(call[0]),
			func(s otlp.Span) bool { return strings.HasPrefix(s.Service, tracedShim) && s.Name == name })
	}, patience, tick, "the shim's span of %s", name)
}

// TestTraces: what a collector gets of a container's life, from the client's call down to the shim's own spans, and
// what it must not get.
func TestTraces(t *testing.T) {
	t.Parallel()
	n, collector := newTracedNode(t)
	c := tracing{collector, t}
	hidden := []setupOpt{
		shell("sleep 1000000 # " + secret), with(oci.WithEnv([]string{"TOKEN=" + secret}),
			oci.WithAnnotations(map[string]string{"a": secret})),
		withOptions(func(o *options.Options) { o.CriuImagePath = "/" + secret }),
	}
	// The first of a namespace has a shim started for it, the next takes that over.
	n.importImage(n.context("traces"))
	hidden = append(hidden, inNamespace("traces"))
	for _, x := range []struct{ id, source, step string }{{"one", "start", "launch"}, {"two", "warm", "adopt"}} {
		j := n.run(x.id, hidden...)
		shim, pid := n.shimPid("traces", x.id), j.Pid()
		j.wait()
		_, code := j.execOutput("look", "echo", secret)
		require.Zero(t, code)
		j.finish()
		create := c.of(x.id, "runtime.task.Create", 1)[0]
		require.Equal(t, map[string]string{
			"namespace": "traces", "task.id": x.id, "task.runtime.name": runcName, "shim.source": x.source,
			"task.pid": intValue(int(pid)), "shim.pid": intValue(shim),
		}, create.Attributes)
		require.Equal(t, "containerd.services.tasks.v1.Tasks/Create", c.above(create).Name)
		require.Equal(t, steps("resolve", x.step, "mounts"), c.steps(create))
		c.call(create, "containerd.task.v3.Task/Create")
		deleted := c.of(x.id, "runtime.task.Delete", 1)[0]
		require.Equal(t, create.Attributes, deleted.Attributes)
		require.Equal(t, "containerd.services.tasks.v1.Tasks/Delete", c.above(deleted).Name)
		require.Equal(t, []string{"runtime.task.Delete.cleanup"}, c.steps(deleted))
		c.call(deleted, "containerd.task.v3.Task/Delete")
	}

	b := n.create("failed", spec("/no/such/thing"))
	_, err := b.NewTask(n.ctx, cio.NullIO)
	require.Error(t, err)
	b.remove()
	require.Contains(t, c.of("failed", "runtime.task.Create", 1)[0].Failure, "/no/such/thing")

	n.run("over", forever())
	n.Stop()
	n.Run()
	restore := c.of("", "runtime.shim.Restore", 2)[1]
	require.Equal(t, intValue(1), restore.Attributes["instances"])
	require.Equal(t, intValue(1), restore.Attributes["running"])
	require.Equal(t, intValue(0), restore.Attributes["unsettled"])
	require.Empty(t, restore.ParentID)
	e := n.taskOf("over").waiting()
	victim := n.shimPid(testNS, "over")
	require.NoError(t, unix.Kill(victim, unix.SIGKILL))
	e.code()
	reap := c.of("over", "runtime.shim.Reap", 1)[0]
	require.Equal(t, intValue(victim), reap.Attributes["shim.pid"])
	require.Empty(t, reap.ParentID)
	n.boxOf("over").remove()

	c.isDiscreet()
}

// isDiscreet checks that no span says what clients gave, and that what lasts as long as a container has none.
func (c tracing) isDiscreet() {
	c.t.Helper()
	all := c.Spans(func(otlp.Span) bool { return true })
	require.NotEmpty(c.t, all)
	for _, s := range all {
		require.NotContains(c.t, s.Raw.String(), secret)
		if s.Service == tracedDaemon && s.Kind != tracepb.Span_SPAN_KIND_SERVER {
			require.NotContains(c.t, s.Name, "Wait")
			require.False(c.t, s.ParentID == "" && strings.Contains(s.Name, ".Task/"),
				"a call in the background is a trace of its own: %s", s.Name)
		}
	}
}

func intValue(n int) string { return "int_value:" + strconv.Itoa(n) }

// TestTracesOfSandbox: the Sandbox API's calls, a container that joins, and one with a shim that serves no other.
func TestTracesOfSandbox(t *testing.T) {
	t.Parallel()
	n, collector := newTracedNode(t)
	c := tracing{collector, t}
	shim := shimtest.Install(t, shimtest.Scenario{Sandbox: true})
	sb := n.sandbox("pod", shim)
	n.run("one", spec("sleep"), fake(shim), inSandbox("pod")).finish()
	n.run("alone", spec("sleep"), fake(shim)).finish()
	require.NoError(t, sb.Stop(n.ctx))
	require.NoError(t, sb.Shutdown(n.ctx))
	for _, name := range []string{"Create", "Start", "Stop", "Shutdown"} {
		s := c.of("pod", "runtime.sandbox."+name, 1)[0]
		require.Equal(t, testNS, s.Attributes["namespace"])
		require.Equal(t, shim.Path, s.Attributes["task.runtime.name"])
		require.NotEmpty(t, s.Attributes["shim.pid"])
		require.Equal(t, "containerd.services.sandbox.v1.Controller/"+name, c.above(s).Name)
	}
	alone := c.of("alone", "runtime.task.Create", 1)[0]
	require.Equal(t, steps("resolve", "launch", "dial", "mounts"), c.steps(alone))
	joined := c.of("one", "runtime.task.Create", 1)[0]
	require.Equal(t, "join", joined.Attributes["shim.source"])
	require.Equal(t, "pod", joined.Attributes["sandbox.id"])
	c.isDiscreet()
}
