// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"testing"
)

// A node with 512 MiB: warm shims do not make it worse. Under a load of eight containers at once nothing is killed for
// want of memory, and there are no more shims than containers being made and removed, but for those that wait or are on
// their way out, of which each container can have left one. Once nothing is created any more, those that wait hold no
// more than warm_memory_percent, one in a hundred, well before the minute after which they would end anyway; and then
// all of them are gone.
func TestSmallNode(t *testing.T) {
	t.Parallel()
	n := newBootedNode(t, "small", 512)
	n.sh(t, `
oom() { awk '/^oom_kill / {print $2}' /proc/vmstat; }
before=$(oom)
start_registry
/payload/guest load vm 8 2 >/run/load.log 2>&1 & load=$!
/payload/guest warm $load 8 | tee /tmp/warm
wait $load || { cat /run/load.log; fail "the load has failed"; }
allowed=$(($(awk '/^MemTotal:/ {print $2}' /proc/meminfo) / 100))
told() { sed -n "s/^$1: //p" /tmp/warm; }
[ "$(told looks)" -ge 5 ] && [ "$(told idle)" -ge 1 ] || fail "too few looks: this checks nothing"
[ "$(told beyond)" -le 8 ] || fail "there were $(told beyond) shims too many"
[ "$(oom)" = "$before" ] || fail "the kernel has killed for want of memory"
waits_little() { /payload/guest warm 0 0 >/tmp/warm; [ "$(told held)" -le $allowed ]; }
if ! (eventually 20 waits_little); then cat /tmp/warm; fail "more than $allowed KiB"; fi
cat /tmp/warm
idle() { [ -z "$(waiting)" ]; }
eventually 300 idle
no_leftovers`)
}
