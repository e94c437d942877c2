#!/usr/bin/env bash
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# gofmt, licence headers, go vet and staticcheck over all modules, checklocks over what has annotations for it, and the vulnerabilities that
# are known of what is linked into bin/containerd. Versions are those of hack/lint/go.mod, and of hack/vuln.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mapfile -t files < <(find . -name '*.go' -not -path './bin/*' | sort)

echo "gofmt: ${#files[@]} files"
if unformatted=$(gofmt -l "${files[@]}") && [ -n "$unformatted" ]; then
  printf 'not formatted, run gofmt -w on them:\n%s\n' "$unformatted" >&2
  exit 1
fi

echo "licence headers"
bad=0
while IFS= read -r file; do
  if ! head -3 "$file" | grep -q 'Copyright The Shimyard Authors\.' || ! head -4 "$file" | grep -q 'SPDX-License-Identifier: Apache-2\.0'; then
    echo "$file: the first lines must be the two of the licence header, see any other file" >&2
    bad=1
  fi
done < <(find . \( -name '*.go' -o -name '*.sh' -o -name Makefile -o -path './.ci/run' \) -not -path './bin/*' -not -path './.git/*')
[ "$bad" -eq 0 ]

mkdir -p bin/tools
go -C hack/lint build -o "$PWD/bin/tools/staticcheck" honnef.co/go/tools/cmd/staticcheck
for module in . integration integration/conformance hack/monitoring hack/package; do
  echo "go vet and staticcheck in $module"
  (cd "$module" && go vet ./... && "$OLDPWD/bin/tools/staticcheck" ./...)
done

# The packages in which each field that a lock guards says so, by +checklocks. The tests of package manager look at what they like while nothing
# else runs, so they are left out.
rooms=(./manager/internal/...)
sep='{"Replace":{'
for file in manager/*_test.go; do
  printf '%s"%s":""' "$sep" "$PWD/$file"
  sep=,
done >bin/untested.json
printf '}}' >>bin/untested.json
go -C hack/lint build -o "$PWD/bin/tools/checklocks" gvisor.dev/gvisor/tools/checklocks/cmd/checklocks
echo "checklocks in ./manager and ${rooms[*]}"
go vet -vettool="$PWD/bin/tools/checklocks" "${rooms[@]}"
go vet -overlay=bin/untested.json -vettool="$PWD/bin/tools/checklocks" ./manager

bash hack/vuln.sh
