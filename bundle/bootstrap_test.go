// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"encoding/json"
	"os"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func fullBootstrap(t testing.TB) *bootapi.BootstrapResult {
	t.Helper()
	value, err := anypb.New(&types.Mount{Type: "overlay", Options: []string{"a<b>&c"}})
	require.NoError(t, err)
	return &bootapi.BootstrapResult{
		Version:    3,
		Address:    "unix:///run/containerd/s/0123",
		Protocol:   "ttrpc",
		Metadata:   map[string]string{"k": "v"},
		Extensions: []*bootapi.Extension{{Value: value}},
	}
}

// readAsStock reads a bootstrap.json as containerd's own runtime does: as protobuf, else as JSON of the whole message,
// else as an address.
func readAsStock(data []byte) *bootapi.BootstrapResult {
	r := &bootapi.BootstrapResult{}
	if err := proto.Unmarshal(data, r); err == nil {
		return r
	}
	r = &bootapi.BootstrapResult{}
	if err := json.Unmarshal(data, r); err != nil || r.Version < 2 {
		return &bootapi.BootstrapResult{Version: 2, Address: string(data), Protocol: "ttrpc"}
	}
	return r
}

func TestBootstrapRoundTrip(t *testing.T) {
	for name, want := range map[string]*bootapi.BootstrapResult{
		"full":       fullBootstrap(t),
		"version 2":  {Version: 2, Address: "unix:///run/s", Protocol: "ttrpc"},
		"grpc":       {Version: 3, Address: "vsock://3:1024", Protocol: "grpc"},
		"abstract":   {Version: 2, Address: "\x00/containerd-shim/x.sock", Protocol: "ttrpc"},
		"a later v4": {Version: 4, Address: "unix:///run/s", Protocol: "other"},
	} {
		t.Run(name, func(t *testing.T) {
			b := create(t, newLayout(t), testID)
			require.NoError(t, b.WriteBootstrap(want))
			raw, err := json.Marshal(want)
			require.NoError(t, err)
			require.Equal(t, string(raw), content(t, b.file("bootstrap.json")))
			requireMode(t, b.file("bootstrap.json"), 0o644)

			got, err := b.ReadBootstrap()
			require.NoError(t, err)
			require.True(t, proto.Equal(want, got), "%v", got)
			require.True(t, proto.Equal(want, readAsStock(raw)),
				"containerd's own runtime must read it after a rollback")
		})
	}
}

// TestBootstrapBytes pins the form on disk, which other daemons read.
func TestBootstrapBytes(t *testing.T) {
	b := create(t, newLayout(t), testID)
	require.NoError(t, b.WriteBootstrap(&bootapi.BootstrapResult{
		Version: 3, Address: "unix:///s", Protocol: "ttrpc",
		Extensions: []*bootapi.Extension{{Value: &anypb.Any{TypeUrl: "x/y", Value: []byte{1, 2}}}},
	}))
	require.Equal(t,
		`{"version":3,"address":"unix:///s","protocol":"ttrpc","extensions":[{"value":{"type_url":"x/y","value":"AQI="}}]}`,
		content(t, b.file("bootstrap.json")))
}

func TestWriteBootstrapRefusesWhatCannotBeReadBack(t *testing.T) {
	b := create(t, newLayout(t), testID)
	for _, r := range []*bootapi.BootstrapResult{nil, {}, {Version: 3}, {Version: 1, Address: "a"},
		{Version: 3, Address: "a\nb"}, {Version: 2, Address: "\x00"}} {
		require.True(t, errdefs.IsInvalidArgument(b.WriteBootstrap(r)), "%v", r)
	}
	require.NoFileExists(t, b.file("bootstrap.json"))
}

func TestReadBootstrapOfOlderDaemons(t *testing.T) {
	legacy := &bootapi.BootstrapResult{Version: 2, Address: "unix:///run/containerd/s/a", Protocol: "ttrpc"}
	for _, tc := range []struct {
		name, bootstrap, address string
		want                     *bootapi.BootstrapResult
	}{
		{"1.7", `{"version":2,"address":"unix:///run/containerd/s/a","protocol":"ttrpc"}`, "unix:///other", legacy},
		{"2.x with a line end", `{"version":2,"address":"unix:///run/containerd/s/a","protocol":"ttrpc"}` + "\n", "",
			legacy},
		{"a field of the future",
			`{"version":2,"address":"unix:///run/containerd/s/a","protocol":"ttrpc","new":{"a":[1]}}`, "", legacy},
		{"address alone", "unix:///run/containerd/s/a\n", "", legacy},
		{"address file", "", "unix:///run/containerd/s/a", legacy},
		{"address file with a line end", "", "unix:///run/containerd/s/a\n", legacy},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := create(t, newLayout(t), testID)
			if tc.bootstrap != "" {
				put(t, b.file("bootstrap.json"), tc.bootstrap)
			}
			if tc.address != "" {
				put(t, b.file("address"), tc.address)
			}
			got, err := b.ReadBootstrap()
			require.NoError(t, err)
			require.True(t, proto.Equal(tc.want, got), "%v", got)
		})
	}
}

func TestReadBootstrapErrors(t *testing.T) {
	b := create(t, newLayout(t), testID)
	_, err := b.ReadBootstrap()
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	_, err = b.LegacyAddress()
	require.True(t, errdefs.IsNotFound(err), "%v", err)

	put(t, b.file("address"), "unix:///good")
	for _, bad := range []string{
		"", " \n", "{", `{}`, `{"version":3}`, `{"version":1,"address":"unix:///a"}`, `{"address":"unix:///a"}`,
		`{"version":2,"address":"a"}x`,
		`{"version":"2","address":"a"}`, "two\nlines", "\x00\x00\x00\x00", "\xff\xfe", "a\x1b[0m",
		string(make([]byte, 8192)),
	} {
		put(t, b.file("bootstrap.json"), bad)
		_, err := b.ReadBootstrap()
		require.ErrorIs(t, err, ErrForeign, "%q", bad)
		require.True(t, errdefs.IsFailedPrecondition(err))
		require.ErrorContains(t, err, b.file("bootstrap.json"))
	}
	require.NoError(t, os.Remove(b.file("bootstrap.json")))
	for _, bad := range []string{"", "{", `{"version":2,"address":"a"}`, "a\nb"} {
		put(t, b.file("address"), bad)
		_, err := b.ReadBootstrap()
		require.ErrorIs(t, err, ErrForeign, "%q", bad)
	}
}

func FuzzReadBootstrap(f *testing.F) {
	for _, seed := range []string{
		`{"version":3,"address":"unix:///s","protocol":"ttrpc","extensions":[{"value":{"type_url":"x/y","value":"AQI="}},null],"metadata":{"a":"b"}}`,
		"unix:///run/s", "\x00/abstract", "vsock://3:1", `{"version":2}`, "{", "", "\x08\x03\x12\x01a",
		`{"version":2,"address":"\ud800"}`,
	} {
		f.Add([]byte(seed))
	}
	l := newLayout(f)
	b := create(f, l, testID)
	f.Fuzz(func(t *testing.T, data []byte) {
		put(t, b.file(bootstrapFile), string(data))
		r, err := b.ReadBootstrap()
		if err != nil {
			require.ErrorIs(t, err, ErrForeign)
			return
		}
		require.GreaterOrEqual(t, r.Version, int32(2))
		require.NotEmpty(t, r.Address)
		require.NoError(t, b.WriteBootstrap(r))
		again, err := b.ReadBootstrap()
		require.NoError(t, err)
		require.True(t, proto.Equal(r, again), "%v, then %v", r, again)
		require.True(t, proto.Equal(r, readAsStock([]byte(content(t, b.file(bootstrapFile))))))
	})
}
