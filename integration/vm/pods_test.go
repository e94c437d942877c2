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
	for _, side := range []struct{ name, change, daemon string }{
		{"stock", readme.aside, "$stock"}, {"ours", readme.back, "$ours"},
	} {
		t.Run(side.name, func(t *testing.T) {
			output := n.sh(t, side.change+"daemon_is "+side.daemon+"\n"+criRound)
			var told string
			for line := range strings.Lines(output) {
				if fact, ok := strings.CutPrefix(line, "fact: "); ok {
					told += fact
				}
			}
			require.Equal(t, criFacts, told)
		})
	}
	n.sh(t, "no_leftovers")
}

// criFacts are what both sides have to tell.
const criFacts = `running: 2 containers in 2 pods
exec: hello hello
exit of an exec: exit code 5
network: 1 packets received
first process: /bin/sh -c trap 'exit 3' TERM; while :; do sleep 1; done
first process in a shared namespace: sleep 1000000000
cgroup: /sys/fs/cgroup/pods.slice/cri-containerd 67108864 50000 100000
stats: [true,true]
after a restart: 2 containers, hello
stopped: ["CONTAINER_EXITED",3,"Error"]
killed: ["CONTAINER_EXITED",137,"Error"]
left: 0 containers, 0 pods, 0 links
`

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
# The containers of one have a pid namespace each, those of two share the pod's.
for pod in one:1 two:0; do
  pid="{\"namespace_options\": {\"pid\": ${pod#*:}}}" pod=${pod%:*}
  cat >/run/pods/$pod.json <<EOF
{"metadata": {"name": "$pod", "namespace": "default", "uid": "$pod", "attempt": 1}, "log_directory": "/run/pods/log-$pod",
 "linux": {"cgroup_parent": "pods.slice", "security_context": $pid}}
EOF
  cat >/run/pods/box-$pod.json <<EOF
{"metadata": {"name": "box"}, "image": {"image": "localhost/busybox:latest"}, "log_path": "box.log",
 "command": ["/bin/sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1; done"],
 "linux": {"resources": {"memory_limit_in_bytes": 67108864, "cpu_quota": 50000, "cpu_period": 100000},
  "security_context": $pid}}
EOF
done
systemctl restart containerd
eventually 60 ctr version
ctr -n k8s.io image import /payload/image.tar`

// criRound prints the facts, as lines that begin with "fact: ".
const criRound = `
cri() { /payload/crictl --runtime-endpoint unix:///run/containerd/containerd.sock --timeout 120s "$@"; }
fact() { echo "fact: $*"; }
ip_of() { cri inspectp "$1" | jq -r .status.network.ip; }
one=$(cri runp /run/pods/one.json)
two=$(cri runp /run/pods/two.json)
a=$(cri create $one /run/pods/box-one.json /run/pods/one.json)
b=$(cri create $two /run/pods/box-two.json /run/pods/two.json)
cri start $a; cri start $b
fact running: $(cri ps -q | wc -l) containers in $(cri pods -q | wc -l) pods
fact exec: $(cri exec $a echo hello) $(cri exec -s $b echo hello)
fact exit of an exec: $(cri exec $a sh -c 'exit 5' 2>&1 | grep -o 'exit code [0-9]*')
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
