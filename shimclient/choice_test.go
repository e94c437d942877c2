// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestChoice(t *testing.T) {
	for value, want := range map[string]StartProtocol{
		"": ProtocolAuto, "auto": ProtocolAuto, "bootstrap": ProtocolBootstrap, "legacy": ProtocolLegacy,
	} {
		got, err := Choice("start protocol", value, StartProtocols...)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	check, err := Choice("binary check", "", BinaryChecks...)
	require.NoError(t, err)
	require.Equal(t, CheckWarn, check)
	for _, value := range []string{"Bootstrap", "auto ", "always"} {
		_, err = Choice("start protocol", value, StartProtocols...)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		require.ErrorContains(t, err, `start protocol "`+value+`": use "auto", "bootstrap" or "legacy"`)
	}
}
