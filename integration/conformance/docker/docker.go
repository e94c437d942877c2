// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package docker holds dockerd over a daemon to what its users rely on: output, exit codes, restarts and OOM kills,
// also over a restart of either daemon. Its tests run in a box.
package docker

// Image is the image of all containers.
const Image = "ghcr.io/containerd/busybox:1.36"

// Namespace is where dockerd has its containers in containerd.
const Namespace = "moby"
