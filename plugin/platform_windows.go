// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"path/filepath"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/platforms"
)

// maxSocketDirLen: a unix socket's address takes 107 bytes, of which a slash and a hash in hex take 65.
const maxSocketDirLen = 107 - 65

func defaultPlatforms() []string { return []string{platforms.DefaultString(), "linux/amd64"} }

// defaultSocketDir is where stock containerd puts sockets.
func defaultSocketDir() string { return filepath.Join(defaults.DefaultStateDir, "s") }
