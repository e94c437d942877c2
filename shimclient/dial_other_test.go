// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package shimclient

func abstractSockets() bool { return false }
