// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"encoding/json"
	"testing"

	"github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

func anySpec(t testing.TB, raw string) typeurl.Any {
	t.Helper()
	url, err := typeurl.TypeURL(&specs.Spec{})
	require.NoError(t, err)
	return &types.Any{TypeUrl: url, Value: []byte(raw)}
}

func TestReadSpec(t *testing.T) {
	for name, c := range map[string]struct {
		spec string
		want specFacts
	}{
		"nothing to know":   {`{"ociVersion":"1.2.0"}`, specFacts{}},
		"remapped root":     {`{"linux":{"gidMappings":[{"containerID":5,"hostID":7,"size":1},{"containerID":0,"hostID":1000,"size":9}]}}`, specFacts{gid: 1000}},
		"root not remapped": {`{"linux":{"gidMappings":[{"containerID":1,"hostID":1000,"size":9}]}}`, specFacts{}},
		"idmap option": {`{"mounts":[{"options":["ro"]},{"destination":"/d","options":["rbind","ridmap"]}]}`,
			specFacts{idmapped: []string{"/d"}}},
		"idmap mappings": {`{"mounts":[{"uidMappings":[{"containerID":0,"hostID":1,"size":1}]}]}`,
			specFacts{idmapped: []string{""}}},
		"groups": {`{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}`, specFacts{groups: []string{"g", "pod"}, runcGroup: true}},
	} {
		t.Run(name, func(t *testing.T) {
			c.want.raw = []byte(c.spec)
			got, err := readSpec(anySpec(t, c.spec))
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestReadSpecRefusesWhatIsNoSpec(t *testing.T) {
	for _, raw := range []string{``, `[`, `[]`, `{"linux":7}`,
		`{"linux":{"gidMappings":[{"containerID":0,"hostID":-1,"size":1}]}}`} {
		_, err := readSpec(&types.Any{TypeUrl: anySpec(t, "").GetTypeUrl(), Value: []byte(raw)})
		require.True(t, errdefs.IsInvalidArgument(err), "%q: %v", raw, err)
	}
}

func TestReadSpecPassesForeignTypesOn(t *testing.T) {
	facts, err := readSpec(&types.Any{TypeUrl: "example/spec", Value: []byte("not JSON")})
	require.NoError(t, err)
	require.Equal(t, specFacts{raw: []byte("not JSON")}, facts)
	facts, err = readSpec(nil)
	require.NoError(t, err)
	require.Equal(t, specFacts{}, facts)
}

func FuzzReadSpec(f *testing.F) {
	f.Add([]byte(`{"linux":{"gidMappings":[{"containerID":0,"hostID":4294967295,"size":1}]},"mounts":[{"options":["idmap"]}]}`))
	f.Add([]byte(`{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		facts, err := readSpec(&types.Any{TypeUrl: anySpec(t, "").GetTypeUrl(), Value: raw})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("class of %v", err)
			}
			return
		}
		if raw != nil && !json.Valid(raw) {
			t.Fatalf("accepted %q", raw)
		}
		if facts.gid != 0 || facts.idmapped != nil || facts.groups != nil {
			var s specs.Spec
			_ = json.Unmarshal(raw, &s) // must not panic on what was accepted
		}
	})
}
