// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"encoding/json"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

func marshalReply(t testing.TB, r *bootapi.BootstrapResult) []byte {
	t.Helper()
	data, err := proto.Marshal(r)
	require.NoError(t, err)
	return data
}

func fullReply(t testing.TB) *bootapi.BootstrapResult {
	t.Helper()
	r := &bootapi.BootstrapResult{
		Version: 3, Address: "unix:///run/s/abc", Protocol: "grpc",
		Capabilities: []bootapi.Capability{0, 7}, Metadata: map[string]string{"a": "b"},
	}
	require.NoError(t, r.AddExtension(&types.MountCapabilities{Types: []string{"erofs"}}))
	return r
}

func TestParseReply(t *testing.T) {
	plain := &bootapi.BootstrapResult{Version: 3, Address: "unix:///run/s/abc", Protocol: "ttrpc"}
	full := fullReply(t)
	fullJSON, err := json.Marshal(full)
	require.NoError(t, err)
	legacy := func(address string) *bootapi.BootstrapResult {
		return &bootapi.BootstrapResult{Version: 2, Address: address, Protocol: "ttrpc"}
	}
	for name, tc := range map[string]struct {
		in   string
		want *bootapi.BootstrapResult
	}{
		"protobuf":       {string(marshalReply(t, plain)), plain},
		"whole protobuf": {string(marshalReply(t, full)), full},
		"whole JSON":     {string(fullJSON), full},
		"JSON of 1.7": {`{"version":2,"address":"unix:///run/s/abc","protocol":"ttrpc"}` + "\n",
			legacy("unix:///run/s/abc")},
		"unknown JSON key": {`{"version":3,"address":"unix:///run/s/abc","protocol":"ttrpc","new":[1]}`, plain},
		"upper case":       {`{"version":3,"address":"unix:///run/s/abc","protocol":"TTRPC"}`, plain},
		"address":          {"unix:///run/s/abc\n", legacy("unix:///run/s/abc")},
		"padded address":   {" \tunix:///run/s/abc \r\n", legacy("unix:///run/s/abc")},
		"bare path":        {"/containerd-shim/ns/id/shim.sock", legacy("/containerd-shim/ns/id/shim.sock")},
		"vsock":            {"vsock://3:1024", legacy("vsock://3:1024")},
		"hybrid vsock":     {"hvsock:///run/vm.sock:1024", legacy("hvsock:///run/vm.sock:1024")},
		"unknown field":    {string(marshalReply(t, plain)) + "\xfa\x01\x02hi", plain},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseReply([]byte(tc.in))
			require.NoError(t, err)
			require.True(t, proto.Equal(tc.want, got), "%v", got)
		})
	}
}

func TestParseReplyRejects(t *testing.T) {
	bad := func(change func(*bootapi.BootstrapResult)) string {
		r := &bootapi.BootstrapResult{Version: 3, Address: "unix:///run/s/abc", Protocol: "ttrpc"}
		change(r)
		return string(marshalReply(t, r))
	}
	for name, tc := range map[string]struct{ in, says string }{
		"nothing":          {"", "answered nothing"},
		"white space":      {" \n\t", "answered nothing"},
		"no address":       {bad(func(r *bootapi.BootstrapResult) { r.Address = "" }), "has no address"},
		"no protocol":      {bad(func(r *bootapi.BootstrapResult) { r.Protocol = "" }), "has no protocol"},
		"unknown protocol": {bad(func(r *bootapi.BootstrapResult) { r.Protocol = "http" }), `protocol is "http"`},
		"no version":       {bad(func(r *bootapi.BootstrapResult) { r.Version = 0 }), "version is 0"},
		"version 1":        {bad(func(r *bootapi.BootstrapResult) { r.Version = 1 }), "version is 1"},
		"control characters": {bad(func(r *bootapi.BootstrapResult) { r.Address = "unix:///a\nb" }),
			"control characters"},
		"unknown scheme":       {bad(func(r *bootapi.BootstrapResult) { r.Address = "tcp://h:1" }), "scheme"},
		"JSON without address": {`{"version":3,"protocol":"ttrpc"}`, "has no address"},
		"JSON without version": {`{"address":"unix:///a","protocol":"ttrpc"}`, "version is 0"},
		"JSON, no protocol":    {`{"version":2,"address":"unix:///a"}`, "has no protocol"},
		"JSON null extension":  {`{"version":3,"address":"unix:///a","protocol":"ttrpc","extensions":[null]}`, "null"},
		"broken JSON":          {`{"version":3,`, "no JSON"},
		"noise before JSON":    {`WARN x {"version":3}`, "not an address"},
		"warning":              {"time=now level=warning msg=hello", "not an address"},
		"word":                 {"done", "not an address"},
		"warning and address":  {"warning: slow disk\nunix:///run/s/abc", "not an address"},
		"binary":               {"\xff\xfe\x00 panic", "neither protobuf nor JSON nor an address"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseReply([]byte(tc.in))
			require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
			require.ErrorContains(t, err, tc.says)
		})
	}
	_, err := ParseReply([]byte(bad(func(r *bootapi.BootstrapResult) { r.Version = 4 })))
	require.True(t, errdefs.IsNotImplemented(err), "%v", err)
	require.ErrorContains(t, err, "version is 4")
}

func TestParseReplyErrorIsBounded(t *testing.T) {
	_, err := ParseReply([]byte(strings.Repeat("noise ", 1<<16)))
	require.Error(t, err)
	require.Less(t, len(err.Error()), 2*quotedReply)
}

func FuzzParseReply(f *testing.F) {
	full := fullReply(f)
	asJSON, err := json.Marshal(full)
	require.NoError(f, err)
	f.Add(marshalReply(f, full))
	f.Add(asJSON)
	for _, seed := range []string{
		"", "unix:///run/s/abc\n", "/bare", "@abstract", "{}", "{", "\x08\x03", "vsock://3:1", "hvsock:///a:1",
		`{"version":2,"address":"unix:///a","protocol":"ttrpc"}`, "WARN\nunix:///a", "\xff\xfe",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseReply(data)
		if err != nil {
			require.True(t, errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err), "%v", err)
			return
		}
		require.NotEmpty(t, r.Address)
		require.Contains(t, []string{"ttrpc", "grpc"}, r.Protocol)
		require.Contains(t, []int32{2, 3}, r.Version)
		_, err = EndpointOf(r)
		require.NoError(t, err)
		asJSON, err := json.Marshal(r)
		require.NoError(t, err)
		for _, written := range [][]byte{asJSON, marshalReply(t, r)} {
			again, err := ParseReply(written)
			require.NoError(t, err)
			require.True(t, proto.Equal(r, again), "%v became %v", r, again)
		}
	})
}
