// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/vm/payload"
)

// demoChecks look at what each line of the demo's text has printed, and done.
var demoChecks = []string{
	`said +shimyard; said ExecStart=/usr/lib/shimyard/containerd`,
	`said running; said RSS; mark a`,
	`said RUNNING; same`,
	`said 'sleep 1d'; same`,
	`said RUNNING; said 'has not answered'`,
	`said hello; same`,
	`dpkg-query -W -f '${Version}' shimyard | grep -F 0.0.1+; daemon_is $ours; same`,
	`said RUNNING; daemon_is $stock; same`,
	`said containerd`,
}

// What the console of `make vm-demo` proposes works as it says.
func TestDemo(t *testing.T) {
	t.Parallel()
	n := newNode(t, "demo")
	n.sh(t, "install /payload/"+payload.OursNewer+"\n"+payload.DemoReady)
	require.Len(t, demoChecks, len(payload.Tries))
	for i, try := range payload.Tries {
		n.sh(t, `
export CONTAINERD_NAMESPACE=default
same() {
  eventually 60 running a
  [ "$listed_pid $(began "$listed_pid")" = "$(cat /run/marks/a)" ] || fail "it is another process"
}
set +e # as for a person
`+kept(try.Command)+"set -e\n"+demoChecks[i])
	}
}
