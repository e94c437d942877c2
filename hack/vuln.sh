#!/usr/bin/env bash
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# govulncheck over the daemon as it is built: the symbols that are linked into it, which takes seconds; an analysis of what is called, over the
# source of all of containerd, takes many minutes. The vulnerability database is a Go module: no network but the module proxy is needed, and
# none once it is in the cache. It is pinned, so that the same commit always gives the same answer; VULNDB=latest asks the newest one.
# govulncheck's version is that of hack/vuln/go.mod.
#
# A vulnerability in a module fails. One in Go's own library fails where the Go that built the daemon is the one that go.mod names or a newer
# one; with an older Go, which only a GOTOOLCHAIN=local uses, it is said and no more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pinned=v0.0.0-20261105234957-e22db6528018

mkdir -p bin/tools
go -C hack/vuln build -o "$PWD/bin/tools/govulncheck" golang.org/x/vuln/cmd/govulncheck
elsewhere=$(mktemp -d) # outside of any module
trap 'rm -r "$elsewhere"' EXIT
db=$(cd "$elsewhere" && go mod download -json "golang.org/x/vulndb@${VULNDB:-$pinned}" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
[ -d "$db/data/osv" ] || { echo "vuln: cannot download the database" >&2; exit 1; }
echo "govulncheck with ${db##*/}"

report=$elsewhere/report status=0
bin/tools/govulncheck -db "file://$db/data/osv" -mode binary bin/containerd >"$report" || status=$?
case $status in
  0) exit 0 ;;
  3) ;; # vulnerabilities were found
  *) cat "$report" >&2; exit $status ;;
esac

used=$(go version bin/containerd | awk '{print $2}')
wanted=$(awk '$1 == "toolchain" {print $2}' go.mod)
fixed=$(sed -n 's/^ *Fixed in: .*@\(go[0-9.]*\)$/\1/p' "$report" | sort -V | tail -1)
newest() { printf '%s\n' "$@" | sort -V | tail -1; }
if grep -q '^ *Module: ' "$report" || [ -z "$fixed" ] || [ "$(newest "$used" "$wanted")" = "$used" ] ||
  [ "$(newest "$fixed" "$wanted")" != "$wanted" ]; then
  cat "$report" >&2
  exit $status
fi
echo "bin/containerd was built with $used, whose library has $(grep -c '^Vulnerability #' "$report") known vulnerabilities. None is left in" \
  "$wanted, which go.mod names: GOTOOLCHAIN=auto uses it, and so does a release."
