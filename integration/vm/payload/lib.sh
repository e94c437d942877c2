# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# What the checks' scripts share, inside the virtual machine. Every script runs with -euo pipefail.
# shellcheck shell=bash

# The commands of the README are run as they stand: nobody is there to say yes.
export DEBIAN_FRONTEND=noninteractive
[ -e /etc/apt/apt.conf.d/90assume-yes ] || echo 'APT::Get::Assume-Yes "true";' >/etc/apt/apt.conf.d/90assume-yes

export CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1 CONTAINERD_NAMESPACE=vm
image=localhost/busybox:latest
state=/run/containerd/io.containerd.runtime.v2.task
root=/var/lib/containerd/io.containerd.runtime.v2.task

fail() {
  echo "FAILED: $*"
  exit 1
}

# eventually SECONDS COMMAND...: until the command succeeds.
eventually() {
  local seconds=$1 end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || fail "not within $seconds s: $*"
    sleep 0.5
  done
}

# The daemon: which program it is, and that it answers. systemd calls it ready when it says so.
main_pid() { systemctl show --property=MainPID --value containerd; }
daemon_path() { readlink "/proc/$(main_pid)/exe"; }
daemon_is() {
  eventually 60 ctr version
  local path
  path=$(daemon_path)
  [ "$path" = "$1" ] || fail "the daemon that runs is $path, not $1"
}
ours=/usr/lib/shimyard/containerd
stock=/usr/bin/containerd

import_image() { ctr image ls -q | grep -qx "$image" || ctr image import /payload/image.tar; }

# start_registry: what guest load pulls from, for as long as the machine runs.
start_registry() {
  /payload/guest registry /payload/pulled.tar >/run/registry.log 2>&1 &
  eventually 60 bash -c 'exec 3<>/dev/tcp/127.0.0.1/5000'
}

# follow_events: into /tmp/events, until $events is killed.
follow_events() {
  /payload/guest events "$CONTAINERD_NAMESPACE" >/tmp/events & events=$!
  eventually 60 grep -x here /tmp/events
  sleep 0.5 # a subscription does not say when it has been made
}

# start_box ID [FLAGS...]: a container that counts into a log until /tmp/done is there, and then exits with 7. Once a
# second: without KVM each sleep is a tenth of a second's work.
start_box() {
  local id=$1
  shift
  ctr run --detach --log-uri "file:///var/log/box-$id.log" "$@" "$image" "$id" \
    /bin/sh -c 'n=0; while [ ! -e /tmp/done ]; do n=$((n+1)); echo "$n"; sleep 1; done; exit 7'
  eventually 30 test -s "/var/log/box-$id.log"
}
# task_of ID: reads the pid and the status that the daemon lists. No process beyond ctr's: each is dear where there is
# no KVM.
task_of() {
  local list id
  pid='' status=unknown
  list=$(ctr task ls) || return 0 # a daemon that does not answer has not said that there is no task
  status=''
  while read -r id pid status; do
    if [ "$id" = "$1" ]; then return; fi
  done <<<"$list"
  pid='' status=''
}
pid_of() { local pid status; task_of "$1"; echo "$pid"; }
status_of() { local pid status; task_of "$1"; echo "$status"; }
# began PID: in ticks since the boot, which no clock changes.
began() {
  local stat
  stat=$(<"/proc/$1/stat")
  read -ra stat <<<"${stat##*) }"
  echo "${stat[19]}"
}
count_of() { tail -n 1 "/var/log/box-$1.log"; }

# stats_of ID: into /tmp/metrics. A busy machine may take longer than the daemon lets a shim have, so that it has to
# be asked again.
stats_of() { ctr task metrics --format json "$1" >/tmp/metrics; }

# mark ID: remembers which process the container is.
mark() {
  local pid
  pid=$(pid_of "$1")
  mkdir -p /run/marks
  echo "$pid $(began "$pid")" >"/run/marks/$1"
}
boxes() { ls /run/marks; }
# unnoticed ID...: the same process as when it was marked, listed as running, counting on, and open to an exec.
unnoticed() { /payload/guest unnoticed "$CONTAINERD_NAMESPACE" "$@"; }
running() {
  local pid status
  task_of "$1"
  listed_pid=$pid
  [ "$status" = RUNNING ]
}
stopped() { [ "$(status_of "$1")" = STOPPED ]; }
counted_on() { [ "$(count_of "$1")" -gt "$2" ]; }

# ended_with CODE ID: the task is deleted, and says which code it ended with. No file is written: the disk may be full.
ended_with() {
  local said
  said=$(ctr task rm "$2" 2>&1) || true
  [[ $said == *"exit code $1"* ]] || fail "the exit code of $2 is not $1: $said"
}

# finish_box ID...: has it end by itself; its exit code must be the one that it chose.
finish_box() {
  local id
  for id in "$@"; do
    # The container may end, and the exec be killed with it, before the exec has ended by itself.
    ctr task exec --exec-id "end$RANDOM" "$id" /bin/sh -c 'mkdir -p /tmp && touch /tmp/done' || true
    eventually 30 stopped "$id"
    ended_with 7 "$id"
    ctr container rm "$id"
    rm -f "/var/log/box-$id.log" "/run/marks/$id"
  done
}
# kill_box ID...: ends it by force.
kill_box() {
  local id
  for id in "$@"; do
    ctr task kill --signal 9 "$id"
    eventually 30 stopped "$id"
    ended_with 137 "$id"
    ctr container rm "$id"
    rm -f "/var/log/box-$id.log"
  done
}

# leftovers: whatever of a container or shim is on the node.
leftovers() { /payload/guest leftovers "$CONTAINERD_NAMESPACE"; }
nothing_left() { [ -z "$(leftovers)" ]; }
# The shims that run, by the name that the kernel keeps 15 bytes of (a pattern for the whole line would find the
# script that holds it); of them those that wait for a container.
shims() { pgrep -a -x containerd-shim || true; }
waiting() { shims | awk '/ -id _/ {print $1}'; }
# no_leftovers: once the daemon was stopped cleanly, and with it the shims that wait, there is nothing. It is started
# again, and there still is nothing. A clean stop, and the end of a shim, have some seconds: where the machine is too
# slow for them the daemon says so, and the next start removes what it has left of shims that waited.
no_leftovers() {
  systemctl stop containerd
  local left end=$((SECONDS + 30))
  while left=$(leftovers) && [ -n "$left" ] && [ "$SECONDS" -lt "$end" ]; do sleep 0.5; done
  if [ -n "$left" ]; then
    echo "$left"
    journalctl -b -u containerd -o cat | grep -E '(taken up at|leaving it for) the next start' || {
      journalctl -b -u containerd -o cat -n 50; fail "there are leftovers"; }
    # What a warm shim leaves is its directory and its socket; never a process, a mount or anything of a container.
    if grep -vE ' /run/containerd/(io.containerd.runtime.v2.task/\._|s/)' <<<"$left"; then fail "there are leftovers"; fi
  fi
  systemctl start containerd
  eventually 60 ctr version
  if ! (eventually 30 nothing_left); then leftovers; fail "there are leftovers after a start"; fi
}
# install FILE: dpkg alone, no network; what it says is kept.
install() { dpkg --install "$@" 2>&1 | tee /tmp/dpkg.out; }
said() { grep -qF -- "$1" /tmp/dpkg.out || fail "dpkg has not said: $1"; }

# node_ready: our daemon runs, and the image is there.
node_ready() {
  systemctl start containerd
  daemon_is $ours
  import_image
}
