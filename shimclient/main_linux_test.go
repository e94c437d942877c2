// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"testing"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

func TestMain(m *testing.M) { shimtest.Main(m) }
