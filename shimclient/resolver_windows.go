// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"hash/fnv"
	"os"
	"path/filepath"
)

// identifyFile takes the path for the inode, which a stat does not have here.
func identifyFile(path string) (FileID, error) {
	info, err := os.Stat(path)
	if err != nil {
		return FileID{}, err
	}
	name := fnv.New64a()
	name.Write([]byte(filepath.Clean(path)))
	return FileID{inode: name.Sum64(), size: info.Size(), mtime: info.ModTime().UnixNano()}, nil
}
