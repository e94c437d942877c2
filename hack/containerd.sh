#!/usr/bin/env bash
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# Builds and tests against another release of containerd, in a copy: containerd.sh v2.4.1. The checkout stays as it is. SHORT=1 leaves the
# integration tests out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=${1:?usage: containerd.sh VERSION, such as v2.4.1}
module=github.com/containerd/containerd/v2
copy=$(mktemp -d)
trap 'chmod -R u+w "$copy"; rm -rf "$copy"' EXIT
tar -c --exclude=./bin --exclude=./.git . | tar -x -C "$copy"
cd "$copy"
export GOFLAGS=-buildvcs=false

for dir in . integration; do
  go -C "$dir" get "$module@$version"
  go -C "$dir" mod tidy
done
is=$(go -C integration list -m -f '{{.Version}}' "$module")
[ "$is" = "$version" ] || { echo "containerd: a dependency asks for $is, $version cannot be had" >&2; exit 1; }

go vet ./... && go -C integration vet ./...
make --no-print-directory build
bin/containerd --version
go -C integration test -count=1 ./containerd
go test -count=1 -timeout 30m ./...
if [ -n "${SHORT:-}" ]; then exit; fi
[ "$(id -u)" -eq 0 ] || { echo "containerd: not root, without the integration tests" >&2; exit; }
# The tests of what clients of this release see: tasks, execs, restarts, deaths, CRI's pods. Its own shim and client are built with it.
go -C integration test -count=1 -p 1 -timeout 40m -run '^Test(Exec|Exit|Restart|Reboot|Shim(Stalled|Killed)|Pod|Sandbox|Wait|UpgradeAndRollback|PluginsLoad)' .
