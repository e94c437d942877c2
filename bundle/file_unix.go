// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package bundle

import "golang.org/x/sys/unix"

// openFlags keep an open from following a link and from waiting for the other end of a fifo.
const openFlags = unix.O_NOFOLLOW | unix.O_NONBLOCK
