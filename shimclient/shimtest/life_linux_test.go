// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/stretchr/testify/require"
)

// Each generation over each transport and socket form runs a task from create to delete.
func TestLifeOfATask(t *testing.T) {
	cases := map[string]struct {
		scenario Scenario
		opts     []InstallOption
		stdin    func(*rig) []byte
		version  int32
	}{
		"bootstrap ttrpc": {Scenario{}, nil, func(r *rig) []byte { return r.bootstrapStdin() }, 3},
		"bootstrap grpc":  {Scenario{Transport: "grpc"}, nil, func(r *rig) []byte { return r.bootstrapStdin() }, 3},
		"grpc, bare path": {Scenario{Transport: "grpc", Socket: Bare}, nil,
			func(r *rig) []byte { return r.bootstrapStdin() }, 3},
		"grpc v2": {Scenario{Transport: "grpc", Reply: Reply{Version: 2}}, nil,
			func(r *rig) []byte { return r.bootstrapStdin() }, 2},
		"legacy": {Scenario{Generation: Legacy}, nil,
			func(r *rig) []byte { return r.legacyStdin(&options.Options{}) }, 2},
		"legacy, no stdin": {Scenario{Generation: Legacy}, nil, func(r *rig) []byte { return nil }, 2},
		"lenient":          {Scenario{Generation: Lenient}, nil, func(r *rig) []byte { return []byte("\xffwhat") }, 2},
		"dropping": {Scenario{Generation: Dropping}, nil, func(r *rig) []byte { return r.bootstrapStdin() },
			3},
		"hybrid vsock": {Scenario{Socket: HVsock}, nil, func(r *rig) []byte { return r.bootstrapStdin() }, 3},
		"abstract":     {Scenario{Socket: Abstract}, nil, func(r *rig) []byte { return r.bootstrapStdin() }, 3},
		"script": {Scenario{}, []InstallOption{WithScript()},
			func(r *rig) []byte { return r.bootstrapStdin() }, 3},
		"without a marker": {Scenario{Generation: Legacy}, []InstallOption{WithoutMarker()},
			func(r *rig) []byte { return r.legacyStdin(&options.Options{}) }, 2},
		"unmarked, new": {Scenario{}, []InstallOption{WithoutMarker()},
			func(r *rig) []byte { return r.bootstrapStdin(&options.Options{}) }, 3},
		"under a real name": {Scenario{}, []InstallOption{WithName("containerd-shim-runc-v2")},
			func(r *rig) []byte { return r.bootstrapStdin() }, 3},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, c.scenario, c.opts...)
			r.config(nil, "sleep")
			res := r.start(c.stdin(r))
			require.Equal(t, c.version, res.Version)
			k := r.dial(res)
			pid := k.create(r)
			require.Equal(t, tasktypes.Status_CREATED, k.state(r.id, "").Status)
			require.Equal(t, pid, k.start(r.id, ""))
			require.Equal(t, tasktypes.Status_RUNNING, k.state(r.id, "").Status)
			initPid, err := os.ReadFile(filepath.Join(r.bundle, "init.pid"))
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(pid), string(initPid))
			k.finish(r)
			require.Equal(t, []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"},
				r.events.Topics(r.id))
		})
	}
}
