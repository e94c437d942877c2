#!/usr/bin/env bash
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# govulncheck over the daemon as it is built: the symbols that are linked into it, which takes seconds; an analysis of what is called, over the
# source of all of containerd, takes many minutes. The vulnerability database comes from its Go module: no network but the module proxy is
# needed, and none once it is in the cache if VULNDB names that version. govulncheck's version is that of hack/vuln/go.mod.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p bin/tools
go -C hack/vuln build -o "$PWD/bin/tools/govulncheck" golang.org/x/vuln/cmd/govulncheck
elsewhere=$(mktemp -d) # outside of any module
trap 'rmdir "$elsewhere"' EXIT
db=$(cd "$elsewhere" && go mod download -json "golang.org/x/vulndb@${VULNDB:-latest}" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
[ -d "$db/data/osv" ] || { echo "vuln: cannot download the database" >&2; exit 1; }
echo "govulncheck with ${db##*/}"
bin/tools/govulncheck -db "file://$db/data/osv" -mode binary bin/containerd
