// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package payload

import (
	"fmt"
	"strings"
)

// Try is a line of what the console proposes, and what it shows.
type Try struct{ Shows, Command string }

// Tries can be entered one after the other, by root, on a machine where DemoReady has run.
var Tries = []Try{
	{"which daemon runs, and why", "ctr version; systemctl cat containerd"},
	{"a container, and what the daemon knows of it",
		"ctr run -d localhost/busybox:latest a sleep 1d; shimyard shims ls; shimyard shims top --once"},
	{"it goes on under another daemon", "systemctl restart containerd; ctr task ls"},
	{"it needs none", "systemctl stop containerd; pgrep -a sleep; systemctl start containerd"},
	{"its shim stalls, as when it is swapped out; it is listed all the same, and once it was asked in vain, named",
		"kill -STOP $(shimyard shims inspect a | jq .instance.shim.pid); ctr task ls; ctr task metrics a; " +
			"while shimyard shims check; do sleep 1; done"},
	{"and is back",
		"kill -CONT $(shimyard shims inspect a | jq .instance.shim.pid); ctr task exec --exec-id e a echo hello"},
	{"another version of the package: the daemon is restarted", "apt-get install -y --allow-downgrades /payload/" + Ours},
	{"containerd's own daemon takes over", "apt-get remove -y shimyard; ctr version; ctr task ls"},
	{"what the daemons have said", "journalctl -u containerd --no-pager | tail"},
}

// DemoReady is the script that makes a machine ready for the tries.
const DemoReady = `
node_ready
CONTAINERD_NAMESPACE=default import_image
`

// DemoText is what the console says at the login.
func DemoText() string {
	var b strings.Builder
	b.WriteString(`
A node with containerd and the package shimyard. Ctrl-A X ends the machine at
once, like a power cut; "systemctl start poweroff.target" does it in order, and
gives what runs 90 seconds. What you may try:
`)
	for _, try := range Tries {
		fmt.Fprintf(&b, "\n# %s\n%s\n", try.Shows, try.Command)
	}
	return b.String() + "\n"
}
