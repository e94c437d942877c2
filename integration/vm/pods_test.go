// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Pods through CRI, as a kubelet has them: systemd's cgroups, a network of CNI's own plugins, resources, namespaces,
// exec, stats, a restart of the daemon. Stock containerd goes first, ours after it; what each of them has to tell
// must be the same.
func TestPods(t *testing.T) {
	t.Parallel()
	n := newNode(t, "pods")
	readme := readChapter(t)
	n.sh(t, criSetUp)
	var told [2]string
	for side, s := range []struct{ name, change, daemon string }{{"stock", readme.aside, "$stock"}, {"ours", readme.back, "$ours"}} {
		t.Run(s.name, func(t *testing.T) {
			output := n.sh(t, s.change+"daemon_is "+s.daemon+"\n"+criRound)
			for line := range strings.Lines(output) {
				if fact, ok := strings.CutPrefix(line, "fact: "); ok {
					told[side] += fact
				}
			}
		})
	}
	require.NotEmpty(t, told[0])
	require.Equal(t, told[0], told[1])
	n.sh(t, "no_leftovers")
}

const criSetUp = `
mkdir -p /etc/containerd /etc/cni/net.d /run/pods
cat >/etc/containerd/config.toml <<'EOF'
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = 'localhost/busybox:latest'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/usr/lib/cni']
conf_dir = '/etc/cni/net.d'
EOF
cat >/etc/cni/net.d/10-pods.conflist <<'EOF'
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}]]}}]}
EOF
for pod in one two; do
  cat >/run/pods/$pod.json <<EOF
{"metadata": {"name": "$pod", "namespace": "default", "uid": "$pod", "attempt": 1}, "log_directory": "/run/pods/log-$pod",
 "linux": {"cgroup_parent": "pods.slice", "security_context": {"namespace_options": {"pid": 1}}}}
EOF
done
sed -i 's/"pid": 1/"pid": 0/' /run/pods/two.json # a pid namespace that the pod's containers share
cat >/run/pods/box.json <<'EOF'
{"metadata": {"name": "box"}, "image": {"image": "localhost/busybox:latest"}, "log_path": "box.log",
 "command": ["/bin/sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1; done"],
 "linux": {"resources": {"memory_limit_in_bytes": 67108864, "cpu_quota": 50000, "cpu_period": 100000}}}
EOF
systemctl restart containerd
eventually 60 ctr version
ctr -n k8s.io image import /payload/image.tar`

// criRound prints what both sides must agree on as lines that begin with "fact: ".
const criRound = `
cri() { /payload/crictl --runtime-endpoint unix:///run/containerd/containerd.sock --timeout 120s "$@"; }
fact() { echo "fact: $*"; }
ip_of() { cri inspectp "$1" | jq -r .status.network.ip; }
one=$(cri runp /run/pods/one.json)
two=$(cri runp /run/pods/two.json)
a=$(cri create $one /run/pods/box.json /run/pods/one.json)
b=$(cri create $two /run/pods/box.json /run/pods/two.json)
cri start $a; cri start $b
fact running: $(cri ps -q | wc -l) containers in $(cri pods -q | wc -l) pods
fact exec: $(cri exec $a echo hello) $(cri exec -s $b echo hello)
fact exit of an exec: $(cri exec $a sh -c 'exit 5' >/dev/null 2>&1; echo $?)
fact network: $(cri exec $a ping -c 1 -W 20 "$(ip_of $two)" | grep -o '1 packets received')
first() { cri exec "$1" sh -c 'tr "\0" " " </proc/1/cmdline'; }
fact first process: $(first $a)
fact first process in a shared namespace: $(first $b)
scope=$(find /sys/fs/cgroup/pods.slice -name "cri-containerd-$a.scope")
fact cgroup: ${scope%-*} $(cat $scope/memory.max) $(cat $scope/cpu.max)
used='.stats[0] | [.cpu.usageCoreNanoSeconds.value, .memory.workingSetBytes.value | tonumber > 0]'
fact stats: $(cri stats -o json $a | jq -c "$used")
systemctl restart containerd
eventually 60 cri version
fact after a restart: $(cri ps -q | wc -l) containers, $(cri exec $a echo hello)
cri stop --timeout 20 $a
fact stopped: $(cri inspect $a | jq -c '.status | [.state, .exitCode, .reason]')
cri stop --timeout 0 $b
fact killed: $(cri inspect $b | jq -c '.status | [.state, .exitCode, .reason]')
cri rm $a $b
cri stopp $one $two
cri rmp $one $two
fact left: $(cri ps -aq | wc -l) containers, $(cri pods -q | wc -l) pods, $(ip -o link show master cni0 | wc -l) links
`
