// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import "os"

// renameNoReplace renames a directory; one that is there is never replaced on Windows.
func renameNoReplace(from, to string) error { return os.Rename(from, to) }
