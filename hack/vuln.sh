#!/usr/bin/env bash
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# govulncheck over the daemon, with the vulnerability database from its Go module: no network but the module proxy is needed. Its version is that
# of hack/vuln/go.mod; the database is the newest, or the one that VULNDB names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p bin/tools
go -C hack/vuln build -o "$PWD/bin/tools/govulncheck" golang.org/x/vuln/cmd/govulncheck
db=$(cd "$(mktemp -d)" && go mod download -json "golang.org/x/vulndb@${VULNDB:-latest}" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
[ -d "$db/data/osv" ] || { echo "vuln: cannot download the database" >&2; exit 1; }
echo "govulncheck with ${db##*/}"
exec bin/tools/govulncheck -db "file://$db/data/osv" -C integration ./containerd
