// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"testing"
)

// A node with 512 MiB: warm shims do not make it worse. Nothing is killed for want of memory under a load of eight containers at once, the
// shims that wait never hold more than an eighth of the memory, and all of them are gone once nothing is created any more.
func TestSmallNode(t *testing.T) {
	t.Parallel()
	n := newBootedNode(t, "small", 512)
	n.sh(t, `
# The share of the memory that idle shims hold, in per cent, by PSS: what they share with others counts once.
held() {
  local pid kb=0
  for pid in $(waiting); do
    pgrep -P $pid >/dev/null && continue # it serves a container
    kb=$((kb + $(awk '/^Pss:/ {print $2}' /proc/$pid/smaps_rollup 2>/dev/null || echo 0)))
  done
  echo $((kb * 100 / $(awk '/^MemTotal/ {print $2}' /proc/meminfo)))
}
oom() { awk '/^oom_kill / {print $2}' /proc/vmstat; }
before=$(oom)
/payload/guest registry /payload/pulled.tar >/run/registry.log 2>&1 &
/payload/guest load vm 8 3 >/run/load.log 2>&1 & load=$!
most=0
while kill -0 $load 2>/dev/null; do
  now=$(held)
  if [ "$now" -gt "$most" ]; then most=$now; fi
  sleep 1
done
wait $load || { cat /run/load.log; fail "the load has failed"; }
echo "idle shims held $most % of the memory at most; $(waiting | wc -w) wait now"
[ "$most" -le 12 ] || fail "idle shims have held $most % of the memory"
[ "$(oom)" = "$before" ] || fail "the kernel has killed for want of memory"
idle() { [ -z "$(waiting)" ]; }
eventually 300 idle
no_leftovers`)
}
