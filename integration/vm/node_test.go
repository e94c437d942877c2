// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// check is one thing that is tried on a node that is ready.
type check struct{ name, script string }

// What a node does to its containers, and its operator to the node, on one that stays on.
func TestNode(t *testing.T) {
	t.Parallel()
	for i, c := range nodeChecks {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			newNode(t, fmt.Sprintf("node-%d", i+1)).sh(t, c.script)
		})
	}
}

var nodeChecks = []check{
	{"both cgroup drivers", `
stat -f -c %T /sys/fs/cgroup | grep -qx cgroup2fs || fail "this is not cgroup v2 alone"
for driver in cgroupfs systemd; do
  flags='' dir=/sys/fs/cgroup/vm/cg
  if [ $driver = systemd ]; then flags='--runc-systemd-cgroup --cgroup system.slice:vm:cg' dir=/sys/fs/cgroup/system.slice/vm-cg.scope; fi
  start_box cg --memory-limit 67108864 $flags
  [ "$(cat $dir/memory.max)" = 67108864 ] || fail "$driver: memory.max is $(cat $dir/memory.max)"
  grep -qx "$(pid_of cg)" $dir/cgroup.procs || fail "$driver: the container is not in $dir"
  grep -q '^oom_kill 0' $dir/memory.events

  ctr task pause cg
  [ "$(status_of cg)" = PAUSED ] || fail "$driver: not paused"
  grep -qx 'frozen 1' $dir/cgroup.events || fail "$driver: not frozen"
  before=$(count_of cg); sleep 3
  [ "$(count_of cg)" = "$before" ] || fail "$driver: it counts on while it is frozen"
  ctr task resume cg
  eventually 30 counted_on cg "$before"

  eventually 60 stats_of cg
  jq -e '.memory.usage > 0 and .memory.usage_limit == 67108864 and .cpu.usage_usec > 0 and .pids.current >= 1' /tmp/metrics || {
    cat /tmp/metrics; fail "$driver: the stats are not those of the container"; }
  finish_box cg
  [ ! -e $dir ] || fail "$driver: $dir is left"
done
no_leftovers`},

	{"a container is killed for want of memory", `
follow_events
start_box other; mark other
ctr run --detach --memory-limit 16777216 $image oom /bin/sh -c 'x=0123456789abcdef; while :; do x=$x$x; done'
eventually 120 stopped oom
grep -E '^oom_kill [1-9]' /sys/fs/cgroup/vm/oom/memory.events
eventually 30 grep -q '/tasks/exit.*"oom"' /tmp/events
kill $events
grep -E '"oom"' /tmp/events | grep -oE '/tasks/(oom|exit)' | head -2 | tr '\n' ' ' | grep -x '/tasks/oom /tasks/exit ' || {
  cat /tmp/events; fail "TaskOOM does not come before the exit"; }
ended_with 137 oom
ctr container rm oom
unnoticed other
finish_box other
no_leftovers`},

	{"a shim is killed for want of memory", `
follow_events
start_box other; mark other
start_box victim
init=$(pid_of victim)
shim=$(ps -o ppid= -p "$init" | tr -d ' ')
mkdir -p /sys/fs/cgroup/small
echo 1 >/sys/fs/cgroup/small/memory.oom.group
echo "$shim" >/sys/fs/cgroup/small/cgroup.procs
echo 262144 >/sys/fs/cgroup/small/memory.max
for n in 1 2 3 4 5; do
  if [ ! -e /proc/$shim ]; then break; fi
  timeout 20 ctr task exec --exec-id "e$n" victim true 2>&1 || true
done
[ ! -e /proc/$shim ] || fail "the kernel has not killed the shim"
grep -E '^oom_kill [1-9]' /sys/fs/cgroup/small/memory.events
gone() { [ ! -e /proc/$init ] && [ -z "$(status_of victim)" ]; }
eventually 60 gone
eventually 30 grep -q '/tasks/exit.*"victim"' /tmp/events
[ "$(grep -c '/tasks/exit.*"container_id":"victim","id":"victim"' /tmp/events)" = 1 ] || {
  cat /tmp/events; fail "the exit was not told once"; }
kill $events
rmdir /sys/fs/cgroup/small
ctr container rm victim
unnoticed other
start_box victim
finish_box victim other
no_leftovers`},

	{"the daemon is stopped, and killed", `
start_box on; mark on
start_box one; start_box two
pids=($(pid_of one) $(pid_of two))
systemctl stop containerd
kill -9 ${pids[0]}
systemctl start containerd
eventually 60 stopped one
ended_with 137 one
unnoticed on
before=$(main_pid)
systemctl kill --kill-whom=main --signal=KILL containerd
kill -9 ${pids[1]}
another() { local pid; pid=$(main_pid); [ "$pid" != 0 ] && [ "$pid" != "$before" ]; }
eventually 60 another
daemon_is $ours
eventually 60 stopped two
ended_with 137 two
unnoticed on
ctr container rm one two
rm -f /var/log/box-one.log /var/log/box-two.log
finish_box on
no_leftovers`},

	{"stop with KillMode=control-group", `
follow_events
start_box one; start_box two
pids="$(pid_of one) $(pid_of two)"
mkdir -p /etc/systemd/system/containerd.service.d
printf '[Service]\nKillMode=control-group\n' >/etc/systemd/system/containerd.service.d/60-kill.conf
systemctl daemon-reload
systemctl stop containerd
[ -z "$(shims)" ] || fail "shims are alive: this checks nothing"
systemctl start containerd
gone() { [ -z "$(status_of one)$(status_of two)" ]; }
eventually 60 gone
ended() { for pid in $pids; do [ ! -e /proc/$pid ] || return 1; done; }
eventually 60 ended # what a container without a shim has left
told() { grep -c "/tasks/exit.*\"container_id\":\"$1\",\"id\":\"$1\"" /tmp/events; }
for id in one two; do eventually 60 told $id; done
kill $events
for id in one two; do [ "$(told $id)" = 1 ] || { cat /tmp/events; fail "the exit of $id was not told once"; }; done
rm /etc/systemd/system/containerd.service.d/60-kill.conf
systemctl daemon-reload
ctr container rm one two
rm -f /var/log/box-one.log /var/log/box-two.log
start_box one; start_box two
finish_box one two
no_leftovers`},

	{"user namespace", `
start_box userns --uidmap 0:100000:65536 --gidmap 0:100000:65536
grep -Eq '^ *0 +100000 +65536$' /proc/$(pid_of userns)/uid_map || fail "it has no user namespace"
[ "$(stat -c '%a %g' $state/vm/userns)" = '710 100000' ] || fail "the bundle has $(stat -c 'mode %a and group %g' $state/vm/userns)"
mark userns
systemctl restart containerd
unnoticed userns
finish_box userns
no_leftovers`},

	{"AppArmor", `
if [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" != Y ]; then echo "this kernel has no AppArmor"; exit 0; fi
start_box confined --apparmor-default-profile vm-default
[ "$(cat /proc/$(pid_of confined)/attr/current)" = 'vm-default (enforce)' ] || fail "it is $(cat /proc/$(pid_of confined)/attr/current)"
finish_box confined
start_box free
[ "$(cat /proc/$(pid_of free)/attr/current)" = unconfined ] || fail "the next one is $(cat /proc/$(pid_of free)/attr/current)"
finish_box free
no_leftovers`},

	{"the clock is set forth and back", `
start_box clock; mark clock
start_box down; down=$(pid_of down)
for step in '+400 days' '-800 days' '+400 days'; do
  date --set="$(date --date="now $step")"
  start_box short; kill_box short
  systemctl restart containerd
  unnoticed clock
done
systemctl stop containerd
date --set="$(date --date='now -2 days')"
kill -9 $down
systemctl start containerd
eventually 60 stopped down
ended_with 137 down
ctr container rm down
date --set="$(date --date='now +2 days')"
unnoticed clock
finish_box clock
rm -f /var/log/box-down.log
no_leftovers`},

	{"the disk of the root is full", fullDisk("/var/fill", "/")},
	{"the disk of the state is full", fullDisk("/run/fill", "/run")},
}

// fullDisk fills a file system to the last block. What runs runs on, over a restart of the daemon too; what cannot be
// created fails and leaves nothing; what ends is told its real exit code and goes.
func fullDisk(file, mountpoint string) string {
	return `
start_box full; mark full
start_box gone
n=0
for size in $(($(stat -f -c '%f * %S' ` + mountpoint + `))) 67108864 8388608 1048576 65536 4096; do
  while n=$((n+1)); fallocate -l "$size" ` + file + `.$n 2>/dev/null; do :; done
  rm -f ` + file + `.$n
done
df ` + mountpoint + `
code=0; timeout 120 ctr run --detach $image new sleep 1000 || code=$?
[ $code != 124 ] || fail "the create hangs"
[ $code != 0 ] || fail "it could be created: this checks nothing"
[ -z "$(status_of new)" ] || fail "there is a task after a create that failed"
clean() { ! leftovers | grep -w new; }
eventually 60 clean
running full || fail "full is $(status_of full)"
ctr task kill --signal 9 gone
eventually 30 stopped gone
ended_with 137 gone
systemctl restart containerd
eventually 60 running full
[ "$(pid_of full) $(began "$(pid_of full)")" = "$(cat /run/marks/full)" ] || fail "it is another process"
rm -f ` + file + `.*
unnoticed full
ctr container rm gone
ctr container rm new 2>/dev/null || true
rm -f /var/log/box-gone.log
start_box new
finish_box new full
no_leftovers`
}

// After a reboot in good order there is no task, nothing is left of one, and its id can be used.
func TestReboot(t *testing.T) {
	t.Parallel()
	n := newNode(t, "reboot")
	n.sh(t, `
start_box left; start_box left2
ctr run --rm $image warm true
find $root -mindepth 2 | grep -q . || fail "there is nothing under the root directory: this checks nothing"`)
	n.restart(t)
	n.sh(t, afterBoot+`
ctr container rm left left2
start_box left
finish_box left
no_leftovers`)
}

// afterBoot is what holds after every boot, before anything is done.
const afterBoot = `
daemon_is $ours
[ -z "$(ctr task ls -q)" ] || fail "there are tasks after a boot: $(ctr task ls)"
if ! (eventually 30 nothing_left); then leftovers; fail "there are leftovers after a boot"; fi
# CRI says so as long as there is no network for pods.
if journalctl -b -u containerd -o cat | grep -E 'level=(error|fatal)' | grep -v 'failed to load cni during init'; then
  fail "the daemon has logged errors"
fi
`

// restart reboots the machine in good order, as its operator would.
func (n *node) restart(t *testing.T) {
	before := n.Boot
	require.NoError(t, n.Shutdown())
	n.boot(t)
	require.NotEqual(t, before, n.Boot)
}
