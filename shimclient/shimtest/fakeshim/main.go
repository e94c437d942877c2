// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Command fakeshim is the fake shim without any test: what tests with the race detector install in place of themselves.
package main

import "github.com/shimyard/shimyard/shimclient/shimtest"

func main() { shimtest.Dispatch() }
