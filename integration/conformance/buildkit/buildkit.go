// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package buildkit holds buildkitd over a daemon, by its containerd worker, to what builds rely on: steps in a row and
// at once, exit codes, mounts, and that of a build which ends in whatever way nothing stays behind. Its tests run in a
// box.
package buildkit

// Image is what builds begin with that do not begin with nothing.
const Image = "ghcr.io/containerd/busybox:1.36"

// Namespace is where buildkitd has its containers in containerd.
const Namespace = "buildkit"

// Busybox is the key of the path of a static busybox in a plan's data, for images that are made of nothing else.
const Busybox = "busybox"
