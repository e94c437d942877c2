// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import "testing"

func TestMain(m *testing.M) { Main(m) }
