#!/usr/bin/env bash
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# Compiles and vets every package of the root module, tests included, for every platform that containerd supports.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for os in linux windows darwin freebsd; do
  for arch in amd64 arm64; do
    start=$SECONDS
    CGO_ENABLED=0 GOOS=$os GOARCH=$arch go build ./...
    CGO_ENABLED=0 GOOS=$os GOARCH=$arch go vet ./...
    echo "$os/$arch compiles and vets ($((SECONDS - start)) s)"
  done
done
