// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"slices"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/internal/daemon"
)

// shims lists the shim processes of the node, without the warm ones that are on record and serve nobody.
func (n *node) shims() []daemon.Shim {
	return slices.DeleteFunc(n.Shims(), func(s daemon.Shim) bool { return s.Idle })
}

// idleShims lists the others.
func (n *node) idleShims() []daemon.Shim {
	return slices.DeleteFunc(n.Shims(), func(s daemon.Shim) bool { return !s.Idle })
}

// shimPid finds the shim process that serves an id.
func (n *node) shimPid(ns, id string) int {
	n.t.Helper()
	s := n.shimOf(ns, id)
	return s.Pid
}

func (n *node) shimOf(ns, id string) daemon.Shim {
	n.t.Helper()
	all := n.Shims()
	var found []daemon.Shim
	for _, s := range all {
		started := len(s.Serves) == 0 && s.Namespace == ns && s.ID == id
		if !s.Helper && (started || slices.Contains(s.Serves, ns+"/"+id)) {
			found = append(found, s)
		}
	}
	require.Len(n.t, found, 1, "shims of %s/%s among %v", ns, id, all)
	return found[0]
}

// awaitNoIdle waits until those that nobody wants are gone.
func (n *node) awaitNoIdle() {
	n.t.Helper()
	require.Eventually(n.t, func() bool { return len(n.idleShims()) == 0 }, patience, tick, "idle shims stay")
}
