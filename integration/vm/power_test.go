// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// workers is how many containers are made at once while the power is cut, all under ids that are used again and again.
const workers = 2

// machines share the cuts, so that all that the host has for them is in use to the end.
const machines = 4

// The power goes while containers are made and deleted and an image is pulled. After each boot nothing of a task is
// there, and in the end every id can be used again. How long the daemon took to be ready is told beside an empty
// node's. SHIMYARD_VM_CUTS is the number of cuts, SHIMYARD_VM_SEED has them fall as they did with that seed.
func TestPowerCuts(t *testing.T) {
	t.Parallel()
	cuts, seed := 20, uint64(time.Now().UnixNano())
	if short() {
		cuts = 1
	}
	for name, set := range map[string]func(uint64){
		"SHIMYARD_VM_CUTS": func(v uint64) { cuts = int(v) }, "SHIMYARD_VM_SEED": func(v uint64) { seed = v },
	} {
		if text := os.Getenv(name); text != "" {
			v, err := strconv.ParseUint(text, 10, 64)
			require.NoError(t, err, name)
			set(v)
		}
	}
	t.Logf("SHIMYARD_VM_SEED=%d", seed)
	for n := range machines {
		if share := (cuts + n) / machines; share > 0 {
			t.Run(fmt.Sprintf("machine %d", n+1), func(t *testing.T) {
				t.Parallel()
				powerCuts(t, fmt.Sprintf("power-%d", n+1), share, rand.New(rand.NewPCG(seed, uint64(n))))
			})
		}
	}
}

func powerCuts(t *testing.T, name string, cuts int, chance *rand.Rand) {
	n := newNode(t, name)
	n.sh(t, "sync") // the image is to be there
	n.Cut()
	n.boot(t)
	n.sh(t, "daemon_is $ours")
	empty := n.readyTime(t)
	var took []time.Duration
	for cut := range cuts {
		if !t.Run(fmt.Sprintf("cut %d", cut+1), func(t *testing.T) {
			n.startLoad(t)
			time.Sleep(time.Duration(chance.Int64N(int64(3 * time.Second)))) // where in the work the cut falls
			n.Cut()
			n.boot(t)
			n.sh(t, afterBoot)
			took = append(took, n.readyTime(t))
		}) {
			return // the disk may tell more than another cut
		}
	}
	t.Run("every id can be used", func(t *testing.T) {
		n.sh(t, fmt.Sprintf(`
start_registry
/payload/guest load vm %d 1
no_leftovers`, workers))
	})
	slices.Sort(took)
	t.Logf("the daemon was ready after %s on an empty node; after the cuts: %s the median, %s the longest",
		empty, took[len(took)/2], took[len(took)-1])
}

// startLoad returns once every worker, and the one that pulls, has gone through a round.
func (n *node) startLoad(t *testing.T) {
	n.sh(t, fmt.Sprintf(`
start_registry
: >/run/load.log
setsid /payload/guest load vm %d 0 >>/run/load.log 2>&1 &
grep -m 1 -E '^(busy|guest:)' <(tail -n +1 -f /run/load.log) | grep -x busy || { cat /run/load.log; fail "the load has failed"; }`,
		workers))
}

// readyTime is how long the daemon of this boot took from its start to its word that it is ready, by systemd's clock.
func (n *node) readyTime(t *testing.T) time.Duration {
	output := n.sh(t, `
a=$(systemctl show --property=ExecMainStartTimestampMonotonic --value containerd)
b=$(systemctl show --property=ActiveEnterTimestampMonotonic --value containerd)
[ "$b" -gt "$a" ] || fail "it is not ready yet"
echo "ready after $((b - a)) us"`)
	_, text, _ := strings.Cut(output, "ready after ")
	text, _, _ = strings.Cut(text, " ")
	us, err := strconv.Atoi(text)
	require.NoError(t, err, output)
	return time.Duration(us) * time.Microsecond
}
