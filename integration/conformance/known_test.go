// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEveryListIsWellFormed(t *testing.T) {
	files, err := lists.ReadDir("known")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, f := range files {
		_, err := Known(strings.TrimSuffix(f.Name(), ".txt"))
		require.NoError(t, err)
	}
	none, err := Known("there is no such suite")
	require.NoError(t, err)
	require.Empty(t, none)
}
