// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"testing"
)

// A node with 512 MiB: warm shims do not make it worse. Nothing is killed for want of memory under a load of eight
// containers at once, the shims that wait never hold more than an eighth of the memory, and all of them are gone once
// nothing is created any more.
func TestSmallNode(t *testing.T) {
	t.Parallel()
	n := newBootedNode(t, "small", 512)
	n.sh(t, `
oom() { awk '/^oom_kill / {print $2}' /proc/vmstat; }
before=$(oom)
start_registry
/payload/guest load vm 8 2 >/run/load.log 2>&1 & load=$!
/payload/guest warm $load | tee /tmp/warm
wait $load || { cat /run/load.log; fail "the load has failed"; }
told() { sed -n "s/^$1: //p" /tmp/warm; }
[ "$(told looks)" -ge 5 ] || fail "too few looks: this checks nothing"
[ "$(told percent)" -le 12 ] || fail "idle shims have held $(told percent) % of the memory"
[ "$(oom)" = "$before" ] || fail "the kernel has killed for want of memory"
idle() { [ -z "$(waiting)" ]; }
eventually 300 idle
no_leftovers`)
}
