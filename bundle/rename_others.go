// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix && !linux

package bundle

// renameNoReplace renames a directory unless there is something in the new place: fs.ErrExist.
func renameNoReplace(from, to string) error { return renameOver(from, to) }
