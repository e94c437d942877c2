// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import "os"

func readSmall(path string) ([]byte, error) { return os.ReadFile(path) }
