#!/usr/bin/env bash
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# The benchmark, with the flags given. On a machine with cgroup v1 and, beside it, v2, the latter is hidden in a mount namespace of the
# benchmark's own: Debian's crun takes it for the hierarchy to use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../integration"

unified=/sys/fs/cgroup/unified
export SHIMYARD_BENCH=1
run=(go test -count=1 -run '^TestBench$' -timeout 60m -v . "$@")
if [ "$(id -u)" = 0 ] && [ "$(stat -f -c %T "$unified" 2>/dev/null)" = cgroup2fs ]; then
  exec unshare --mount sh -c 'mount -t tmpfs -o mode=755 tmpfs "$0" && exec "$@"' "$unified" "${run[@]}"
fi
exec "${run[@]}"
