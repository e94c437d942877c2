// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import "os"

func rmdir(path string) error {
	return os.Remove(path)
}
