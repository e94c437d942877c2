// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"encoding/json"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/integration/conformance/crinode"
)

// restart ends the daemon as end does, and starts it again.
func restart(t *testing.T, n *crinode.Node, end func(*crinode.Node) error) {
	t.Helper()
	require.NoError(t, end(n))
	require.NoError(t, n.Daemon.Start(t.Context()))
	require.NoError(t, n.Ready(t.Context()))
}

func states(s synced) map[string]api.ContainerState {
	m := map[string]api.ContainerState{}
	for _, c := range s.containers {
		m[c.Id] = c.State
	}
	return m
}

func pids(s synced) map[string]uint32 {
	m := map[string]uint32{}
	for _, c := range s.containers {
		m[c.Id] = c.Pid
	}
	return m
}

// infoPid is the pid in what CRI tells about a container on request.
func infoPid(t *testing.T, info map[string]string) int {
	t.Helper()
	var v struct{ Pid int }
	require.NoError(t, json.Unmarshal([]byte(info["info"]), &v))
	require.NotZero(t, v.Pid)
	return v.Pid
}
