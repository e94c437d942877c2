// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/conformance/procs"
)

// container is one of dockerd's.
type container struct {
	t  *testing.T
	h  *host
	id string
}

// in is the container as a subtest sees it.
func (c *container) in(t *testing.T) *container { return &container{t: t, h: c.h, id: c.id} }

// inspect is one field of what dockerd knows of the container, as a template.
func (c *container) inspect(field string) string {
	c.t.Helper()
	return c.h.docker(c.t, "inspect", "-f", "{{"+field+"}}", c.id)
}

// number is one field that is a number.
func (c *container) number(field string) int {
	c.t.Helper()
	n, err := strconv.Atoi(c.inspect(field))
	require.NoError(c.t, err)
	return n
}

func (c *container) pid() int {
	c.t.Helper()
	pid := c.number(".State.Pid")
	require.NotZero(c.t, pid)
	return pid
}

// await waits until dockerd says that the container has ended, and returns its exit code.
func (c *container) await(within time.Duration) int {
	c.t.Helper()
	procs.Eventually(c.t, within, func() bool { return c.inspect(".State.Status") == "exited" })
	return c.number(".State.ExitCode")
}

// exec runs a script in the container and returns what it wrote.
func (c *container) exec(script string) string {
	c.t.Helper()
	return c.h.docker(c.t, "exec", c.id, "sh", "-c", script)
}

// remove removes the container, whatever its state.
func (c *container) remove() {
	_, _, _ = c.h.try(context.Background(), "rm", "-f", c.id) // a test may have removed it
}

// terminate sends SIGTERM to a container's process, past both daemons, and waits until it has ended.
func terminate(t *testing.T, pid int) {
	t.Helper()
	require.NoError(t, unix.Kill(pid, unix.SIGTERM))
	procs.Gone(t, pid)
}

// obedient is a script that exits with 7 on SIGTERM. It says so once it does.
const obedient = "trap 'exit 7' TERM; echo ready; while true; do sleep 0.1; done"

// ready waits for the first word of an obedient container.
func (c *container) ready() *container {
	c.t.Helper()
	procs.Eventually(c.t, procs.Patience, func() bool { return c.h.docker(c.t, "logs", c.id) == "ready" })
	return c
}
