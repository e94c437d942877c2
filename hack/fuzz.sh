#!/usr/bin/env bash
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# Usage: hack/fuzz.sh TIME [PACKAGES]   runs each fuzz target of the packages for TIME, such as 60s, or 1000x for a thousand runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

time=${1:?how long each target runs, such as 60s}
shift

targets=0
while read -r package dir; do
  for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go 2>/dev/null | awk '{print $2}'); do
    targets=$((targets + 1))
    echo "fuzz $package $target for $time"
    go test "$package" -run '^$' -fuzz "^$target\$" -fuzztime "$time" </dev/null
  done
done < <(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' "${@:-./...}")

if [ "$targets" -eq 0 ]; then
  echo "no fuzz target found" >&2
  exit 1
fi
echo "$targets fuzz targets ran for $time each"
