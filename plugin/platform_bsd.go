// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !windows

package plugin

// maxSocketDirLen: a unix socket's address takes 103 bytes, of which a slash and a hash in hex take 65.
const maxSocketDirLen = 103 - 65
