#!/usr/bin/env bash
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# Runs a container under the custom daemon, restarts the daemon under it, and shows that the container goes on and that its exit code
# is known afterwards. Everything is in a temporary directory and gone at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' green='' red='' dim='' plain=''; fi
step() { printf '\n%s==> %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '    %s\n' "$*"; }
good() { printf '    %s%s%s\n' "$green" "$*" "$plain"; }
# show prints a command and runs it, its output indented.
show() {
  printf '    %s$ %s%s\n' "$dim" "$*" "$plain"
  "$@" 2>&1 | sed 's/^/    /'
}
fail() {
  printf '\n%smake demo failed: %s%s\n' "$red" "$*" "$plain" >&2
  if [ -s "${dir:-}/containerd.log" ]; then
    echo "The daemon's last words:" >&2
    grep -v 'level=info\|level=debug' "$dir/containerd.log" | tail -n 15 >&2
  fi
  exit 1
}

[ "$(uname -s)" = Linux ] || fail "containers need Linux"
[ "$(id -u)" -eq 0 ] || fail "containers need root: run 'sudo make demo' (where sudo drops PATH: sudo env PATH=\"\$PATH\" make demo)"
command -v go >/dev/null || fail "Go is missing: install it, https://go.dev/doc/install"

dir=$(mktemp -d /tmp/sy-demo.XXXX) # short: a socket's path may have 107 bytes
daemon=''

# start and stop the daemon; it is ready when it answers.
start() {
  PATH="$dir/bin:$PATH" bin/containerd --config "$dir/config.toml" >>"$dir/containerd.log" 2>&1 &
  daemon=$!
  for _ in $(seq 100); do
    if ctr version >/dev/null 2>&1; then return; fi
    kill -0 "$daemon" 2>/dev/null || fail "the daemon ended at its start"
    sleep 0.1
  done
  fail "the daemon does not answer"
}
stop() {
  kill "$daemon"
  wait "$daemon" || true
  daemon=''
}
ctr() { CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1 "$dir/bin/ctr" --address "$dir/c.sock" --namespace sy-demo "$@"; }

# On the way out, whatever happened: the container first, then the daemon, then the directory.
clean() {
  local code=$?
  if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
    ctr tasks delete --force box >/dev/null 2>&1 || true
    ctr containers delete box >/dev/null 2>&1 || true
    stop
  fi
  while read -r mounted; do umount "$mounted" || true; done < <(awk -v d="$dir/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sort -r)
  find /sys/fs/cgroup -maxdepth 2 -type d -name sy-demo -exec rmdir {} + 2>/dev/null || true
  rm -rf --one-file-system "$dir"
  exit "$code"
}
trap clean EXIT

step "Building"
say "bin/containerd is containerd with Shimyard as its task runtime. A first build compiles all of containerd: some minutes."
make --no-print-directory build >"$dir/build.log" 2>&1 || { cat "$dir/build.log" >&2; fail "cannot build the daemon"; }
show bin/containerd --version
mkdir "$dir/bin"
# tool NAME PROGRAM: the machine's program where there is one, else built or unpacked into bin/tools.
tool() {
  local path
  if path=$(type -P "$2"); then
    say "$2: the machine's, $path"
  else
    path=$(go -C integration run ./cmd/tools "$1" 2> >(sed 's/^/    /' >&2)) || fail "cannot get $2"
    [ -n "$path" ] || fail "cannot get $2"
    say "$2: ${path#"$PWD"/}"
  fi
  ln -s "$path" "$dir/bin/$2"
}
tool runc runc
tool shim containerd-shim-runc-v2
tool ctr ctr

step "Making an image, without a registry"
go -C integration run ./cmd/testimage -name localhost/box:demo "$dir/box.tar" 2> >(sed 's/^/    /' >&2) || fail "cannot make the image"
say "one layer with busybox in it"

step "Starting the daemon, in $dir"
cat >"$dir/config.toml" <<EOF
version = 4
root = "$dir/root"
state = "$dir/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[plugins.'io.containerd.server.v1.grpc']
  address = "$dir/c.sock"
[plugins.'io.containerd.server.v1.ttrpc']
  address = "$dir/c.sock.ttrpc"
[plugins.'io.containerd.shim.v1.manager']
  socket_dir = "$dir/s"
EOF
start
good "it answers, its runtime says:"
show ctr plugins list type==io.containerd.runtime.v2

step "Running a container that counts"
show ctr images import "$dir/box.tar"
ctr run --detach --runc-root "$dir/runc" --log-uri "file://$dir/box.log" localhost/box:demo box \
  /bin/sh -c 'n=0; while [ ! -e /tmp/done ]; do n=$((n+1)); echo "$n"; sleep 0.1; done; exit 7' || fail "cannot run a container"
show ctr tasks list

step "A second process in it"
show ctr tasks exec --fifo-dir "$dir/fifo" --exec-id look box /bin/sh -c 'echo "hello from $(hostname), I see:"; ps'

step "Stopping the daemon under the container"
stop
say "no daemon; the container has counted to $(tail -n 1 "$dir/box.log")"
sleep 1
now=$(tail -n 1 "$dir/box.log")
good "and one second later to $now"

step "Starting the daemon again"
start
show ctr tasks list
ctr tasks list | grep -q '^box .*RUNNING' || fail "the container is not running after the restart"
settled='all that an earlier daemon left is settled'
for _ in $(seq 50); do
  if grep -qF "$settled" "$dir/containerd.log"; then break; fi
  sleep 0.1
done
good "the same container, the same pid; the daemon's log says:"
show grep -F "$settled" "$dir/containerd.log"

step "Letting it end"
ctr tasks exec --fifo-dir "$dir/fifo" --exec-id tell box /bin/sh -c 'mkdir -p /tmp && touch /tmp/done' || fail "cannot exec after the restart"
for _ in $(seq 50); do
  if ctr tasks list | grep -q '^box .*STOPPED'; then break; fi
  sleep 0.1
done
show ctr tasks list
code=0
ctr tasks delete box >"$dir/delete" 2>&1 || code=$?
sed 's/^/    /' "$dir/delete"
grep -q 'exit code 7' "$dir/delete" || fail "its exit code is not 7 (ctr said: $(cat "$dir/delete"), $code)"
good "it ended with exit code 7, as it was told to, under a daemon that had not started it"
ctr containers delete box

step "Cleaning up"
stop
left=$(find "$dir/state/io.containerd.runtime.v2.task" "$dir/s" -mindepth 2 2>/dev/null || true)
[ -z "$left" ] || fail "left behind: $left"
good "no shim, no socket, no bundle is left"
# But for what containerd itself says of the file system and of a garbage collection that the stop has overtaken, and its
# shim that ends while it watches for OOM on cgroup v1.
loud=$(grep -E '^time="[^"]*" level=(warning|error|fatal|panic) ' "$dir/containerd.log" |
  grep -vF -e 'msg="failed check for fsverity support"' -e 'msg="cgroups: epoll wait" error=shutdown' \
    -e 'msg="failed to finish collection context"' || true)
[ -z "$loud" ] || fail "the daemon has complained where all went well: $loud"
good "the daemon had nothing to complain of"
