#!/usr/bin/env bash
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# Builds the packages, or a release, into bin/package: package.sh deb|rpm|release [DIRECTORY].
#
# The same commit and architecture give the same bytes, wherever and whenever they are built: by the Go release that go.mod names, which the
# module proxy has. VERSION and SOURCE_DATE_EPOCH in the environment stand in for what git knows: the tag, or the commit, and its time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

what=${1:?usage: package.sh deb|rpm|release [DIRECTORY]}
out=$(realpath -m "${2:-bin/package}")
die() { echo "package: $*" >&2; exit 1; }

in_git=no
if [ -e .git ] && git rev-parse --verify -q HEAD >/dev/null 2>&1; then in_git=yes; fi
# Go does not see the commit of a linked worktree, and leaves it out of the program's version.
if [ "$what" = release ] && [ -f .git ]; then die "this is a linked git worktree: build a release in a clone"; fi
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
  [ $in_git = yes ] || die "this is not a git checkout: say the time of the sources in SOURCE_DATE_EPOCH"
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
fi
export SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C
if [ -z "${VERSION:-}" ]; then
  [ $in_git = yes ] || die "this is not a git checkout: say the version in VERSION"
  if tag=$(git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null); then
    VERSION=${tag#v}
  else # sorts before every release, and by the time of the commit
    VERSION=0.0.0~git$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$(git rev-parse --short=12 HEAD)
  fi
  if [ -n "$(git status --porcelain)" ]; then VERSION+=.modified; fi
fi
case "$VERSION" in *-*) die "VERSION $VERSION: a hyphen separates the revision in a package's version, use ~ for a pre-release" ;; esac

# Nothing of the builder's environment goes into the program, and nothing of a C compiler.
export CGO_ENABLED=0 GOFLAGS='' GOAMD64=v1 GOEXPERIMENT=''
GOTOOLCHAIN=$(awk '$1 == "toolchain" {print $2}' go.mod)
export GOTOOLCHAIN
vcs=false
if [ $in_git = yes ]; then vcs=true; fi
containerd=$(go -C integration list -m -f '{{with .Replace}}{{.Version}}{{else}}{{.Version}}{{end}}' github.com/containerd/containerd/v2)
export VERSION=$VERSION+containerd${containerd#v} ARCH
ARCH=$(go env GOARCH)

umask 022
mkdir -p "$out"
STAGE=$(mktemp -d)
export STAGE
trap 'rm -rf "$STAGE"' EXIT

# Stripped of what only a debugger reads, as containerd's own releases are; profiles and stacks keep their names.
go -C integration build -trimpath -ldflags='-s -w' -buildvcs=$vcs -o "$STAGE/containerd" ./containerd
for shell in bash zsh fish; do
  # What the program is called in PATH, since containerd's own keeps its name there.
  "$STAGE/containerd" completion "$shell" | sed 's/containerd/shimyard/g' >"$STAGE/shimyard.$shell"
done
mv "$STAGE/shimyard.zsh" "$STAGE/_shimyard"
gzip -9n <hack/package/shimyard.8 >"$STAGE/shimyard.8.gz"
go -C hack/package run ./sbom -version "$VERSION" -epoch "$SOURCE_DATE_EPOCH" "$STAGE/containerd" >"$STAGE/sbom.cdx.json"

go -C hack/package build -o "$STAGE/nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm
# pack FORMAT: one package of what is staged.
pack() { "$STAGE/nfpm" package --config hack/package/nfpm.yaml --packager "$1" --target "$out/"; }
case "$what" in
  deb | rpm) pack "$what" ;;
  release)
    rm -rf "${out:?}"/*
    pack deb
    pack rpm
    cp "$STAGE/sbom.cdx.json" "$out/shimyard_$VERSION.cdx.json"
    name=shimyard_${VERSION}_linux_$ARCH
    mkdir "$STAGE/$name"
    cp "$STAGE/containerd" README.md LICENSE "$STAGE/sbom.cdx.json" hack/package/50-shimyard.conf "$STAGE/$name"
    tar -C "$STAGE" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u+rw,go+r,go-w \
      -cf - "$name" | gzip -9n >"$out/$name.tar.gz"
    (cd "$out" && sha256sum -- * >SHA256SUMS)
    cat "$out/SHA256SUMS"
    ;;
  *) die "no such thing to build: $what" ;;
esac
