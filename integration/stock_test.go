// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/internal/daemon"
	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// promise is one thing that containerd as its own project builds it does wrong
// and the custom daemon right. Both are made to do it, so that the tests of the
// difference are known to see it.
type promise struct {
	// changes to the daemon; nil: none.
	changes func(t *testing.T) []change
	// try does it and says what came of it, and whether that is right. It
	// fails the test only where it could not be tried.
	try func(s *side) (what string, right bool)
}

// side is a node that runs one of the two daemons.
type side struct {
	*node
	stock bool
}

// promises are the failures in the table that the design begins with, by row.
var promises = map[string]promise{
	"stalled shims over a restart":                        {try: tryStalledOverRestart},
	"the same with CRI in front":                          {changes: withCRI, try: tryStalledPod},
	"a list with stalled shims":                           {try: tryStalledList},
	"an exit with code 7 while the daemon is down":        {try: tryExitWhileDown},
	"a shim dies after its container's exit was reported": {try: tryDeathAfterExit},
	"a shim of containerd 1.6":                            {changes: generation(func() (string, error) { return kit.Shim16() }), try: tryStart},
	"an async shim of rust-extensions":                    {try: tryRustAsync},
	"start options for a runc shim of 1.7":                {changes: generation(func() (string, error) { return kit.Shim17() }), try: tryShimCgroup},
	"start options for a runc shim of 2.2":                {changes: generation(func() (string, error) { return kit.Shim22() }), try: tryShimCgroup},
	"a shim without Pids over a restart":                  {try: tryNoPids},
	"a gRPC shim":                                         {try: tryGRPC},
	"a shim that logs to stderr while starting":           {try: tryStderr},
	"SIGKILL of the daemon in the middle of a create":     {try: tryKilledAmidCreate},
	"a restart monitor and stalled shims":                 {changes: withMonitor, try: tryMonitor},
}

// promisesLeftOut are the other rows: they are about time, which no test
// asserts; the benchmarks measure them.
var promisesLeftOut = []string{
	"restart with 300 running containers (the scale test prints what it takes)",
	"start + delete over what bare runc costs",
}

func TestPromises(t *testing.T) {
	t.Parallel()
	needRoot(t)
	stock := tool(t, kit.Stock)
	for name, p := range promises {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var theirs, ours string
			var theirsRight, oursRight bool
			t.Run("stock", func(t *testing.T) { theirs, theirsRight = p.onStock(t, stock) })
			t.Run("ours", func(t *testing.T) { ours, oursRight = p.onOurs(t) })
			t.Logf("%s\n\tstock: %s\n\tours:  %s", name, theirs, ours)
			if t.Failed() {
				return
			}
			require.False(t, theirsRight,
				"stock does it right: the test does not see what it is for, or the promise is no more a difference")
			require.True(t, oursRight, "the promise is broken")
		})
	}
	for _, row := range promisesLeftOut {
		t.Logf("left out, as it is about time: %s", row)
	}
}

func (p promise) onStock(t *testing.T, binary string) (string, bool) {
	s := &side{node: newNodeOn(t, tolerant{t}, p.options(t, binary)), stock: true}
	defer s.Abandon()
	return p.try(s)
}

func (p promise) onOurs(t *testing.T) (string, bool) {
	s := &side{node: newNodeOn(t, t, p.options(t, kit.daemon))}
	s.warmUp()
	what, right := p.try(s)
	if right {
		s.deleteEverything()
	}
	return what, right
}

func (p promise) options(t *testing.T, binary string) daemon.Options {
	o := daemon.Options{Binary: binary, Path: []string{filepath.Dir(kit.shim), filepath.Dir(kit.runc)}}
	if p.changes != nil {
		for _, c := range p.changes(t) {
			c(&o)
		}
	}
	return o
}

// newNodeOn is newNode with the options whole, whose end complains to tb, and
// without the first container.
func newNodeOn(t *testing.T, tb testing.TB, o daemon.Options) *node {
	t.Helper()
	n := &node{Daemon: daemon.Start(tb, o), t: t}
	n.ctx = n.context(testNS)
	n.importImage(n.ctx)
	return n
}

// tolerant is a test that only writes down what is left behind: of a daemon
// that is known to leave things.
type tolerant struct{ testing.TB }

func (t tolerant) Errorf(format string, args ...any) { t.Helper(); t.Logf(format, args...) }

func generation(get func() (string, error)) func(*testing.T) []change {
	return func(t *testing.T) []change { return []change{legacyShim(tool(t, get))} }
}

func withCRI(*testing.T) []change {
	return []change{func(o *daemon.Options) {
		o.Plugins = []string{"cri"}
		o.Extra = criConfig
	}}
}

// install is shimtest.Install for a side; stock leaves things behind.
func (s *side) install(c shimtest.Scenario, opts ...shimtest.InstallOption) *shimtest.Shim {
	s.t.Helper()
	shim := shimtest.Install(s.t, c, opts...)
	if s.stock {
		shim.AllowLeftovers()
	}
	return shim
}

// settled waits until ok, on stock only for so long as it takes to be sure that
// it never will be.
func (s *side) settled(ok func() bool) bool {
	limit := patience
	if s.stock {
		limit = 2 * time.Second
	}
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(tick) {
		if ok() {
			return true
		}
	}
	return ok()
}

// uses makes the ids of the processes of use.
var uses atomic.Int64

// use says whether a task can be used: it is there under its pid, its state is
// told, a process can be run in it.
func (n *node) use(id string, pid uint32, command ...string) error {
	ctx, cancel := context.WithTimeout(n.ctx, patience/3)
	defer cancel()
	c, err := n.Client().LoadContainer(ctx, id)
	if err != nil {
		return err
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		return err
	}
	if task.Pid() != pid {
		return fmt.Errorf("pid %d, not %d", task.Pid(), pid)
	}
	if status, err := task.Status(ctx); err != nil || status.Status != containerd.Running {
		return fmt.Errorf("status %q, %v", status.Status, err)
	}
	id = fmt.Sprintf("use-%d", uses.Add(1)) // one that failed half way keeps its id
	p, err := task.Exec(ctx, id, process(command...), cio.NullIO)
	if err != nil {
		return err
	}
	ch, err := p.Wait(ctx)
	if err != nil {
		return err
	}
	if err := p.Start(ctx); err != nil {
		return err
	}
	if code, _, err := (<-ch).Result(); code != 5 || err != nil {
		return fmt.Errorf("an exec ended with %d, %v", code, err)
	}
	_, err = p.Delete(ctx)
	return err
}

// five is a command for use: of containers of runc's, and of the fake.
var five = []string{"sh", "-c", "exit 5"}
