#!/usr/bin/env bash
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# Everything that CI runs, one step after the other. `make test` calls it; V=1 in the environment of make prints every test by name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
say() { printf '%s\n' "${bold}$*${plain}"; }

for program in go git make gcc; do
  if ! command -v "$program" >/dev/null; then
    echo "make test: $program is missing, install it first (gcc builds runc and the race detector's tests)" >&2
    exit 1
  fi
done

steps=11 at=0 begin=$SECONDS
# step DESCRIPTION COMMAND... runs one step, or ends the run saying which step failed.
step() {
  at=$((at + 1))
  local what=$1 start=$SECONDS
  shift
  say "==> [$at/$steps] $what"
  if ! "$@"; then
    say "==> [$at/$steps] FAILED after $((SECONDS - start)) s: $what" >&2
    exit 1
  fi
  say "==> [$at/$steps] done in $((SECONDS - start)) s"
}

say "Shimyard: all checks. With cold caches most of the time goes into building containerd, ctr, runc and shims of several releases."
if [ "$(id -u)" -ne 0 ]; then
  say "You are not root: tests that run containers are skipped and say so. 'sudo make test' runs them."
fi

step "the daemon, bin/containerd" make --no-print-directory build
step "form: gofmt, licence headers, go vet, staticcheck, checklocks, known vulnerabilities" make --no-print-directory lint
step "unit tests, with the race detector" make --no-print-directory race
step "alerts and dashboard, held to Prometheus's parsers and to the metrics of the code" make --no-print-directory monitoring
step "every package for four operating systems on two architectures" make --no-print-directory cross
# A number of runs, not a time: a worker that is busy when the time is up fails the target, "context deadline exceeded".
step "each fuzz target for a short while" make --no-print-directory fuzz FUZZTIME="${TEST_FUZZTIME:-1000x}"
if [ "$(id -u)" -eq 0 ]; then
  step "what the integration tests run against: built or unpacked into bin/tools, nothing is installed" make --no-print-directory tools
else
  step "no tools to build: not root" true
fi
step "the ground that other people's suites run on" go -C integration/conformance test -count=1 ./...
if [ "$(id -u)" -eq 0 ]; then
  step "other people's suites, the part that is quick: containerd's client suite, NRI" make --no-print-directory conformance-quick
else
  step "no suites of other people: not root" true
fi
if [ "$(id -u)" -eq 0 ]; then
  step "the demo of the README" make --no-print-directory demo
else
  step "no demo: not root" true
fi
step "integration: real containerd, real shims, real runc" make --no-print-directory integration

say "==> all passed in $((SECONDS - begin)) s"
