// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"math"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestParseEndpoint(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("paths of unix sockets")
	}
	for _, tc := range []struct {
		address string
		want    target
		local   bool
	}{
		{"ttrpc+unix:///run/containerd/s/abc", target{kind: kindUnix, path: "/run/containerd/s/abc"}, true},
		{"grpc+unix:///run/containerd/s/abc", target{kind: kindUnix, path: "/run/containerd/s/abc"}, true},
		{"grpc+/run/containerd/s/abc", target{kind: kindUnix, path: "/run/containerd/s/abc"}, true},
		{"ttrpc+unix://@name", target{kind: kindUnix, path: "@name"}, false},
		{"ttrpc+unix://\x00name", target{kind: kindUnix, path: "\x00name"}, false},
		{"grpc+@name", target{kind: kindUnix, path: "@name"}, false},
		{"ttrpc+\x00name", target{kind: kindUnix, path: "\x00name", bareTTRPC: true}, false},
		{"ttrpc+/containerd-shim/ns/id/shim.sock",
			target{kind: kindUnix, path: "/containerd-shim/ns/id/shim.sock", bareTTRPC: true}, false},
		{"ttrpc+some-name", target{kind: kindUnix, path: "some-name", bareTTRPC: true}, false},
		{"ttrpc+unix:///run/a+b", target{kind: kindUnix, path: "/run/a+b"}, true},
		{"ttrpc+vsock://3:1024", target{kind: kindVsock, cid: 3, port: 1024}, false},
		{"grpc+vsock://4294967295:4294967295", target{kind: kindVsock, cid: math.MaxUint32, port: math.MaxUint32},
			false},
		{"ttrpc+hvsock:///run/vc/kata.hvsock:1024",
			target{kind: kindHybridVsock, path: "/run/vc/kata.hvsock", port: 1024}, false},
		{"ttrpc+hvsock:///run/a:b/kata.hvsock:1", target{kind: kindHybridVsock, path: "/run/a:b/kata.hvsock", port: 1},
			false},
	} {
		t.Run(tc.address, func(t *testing.T) {
			e, err := ParseEndpoint(tc.address, 3)
			require.NoError(t, err)
			got, err := e.target()
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
			require.Equal(t, tc.address, e.String())
			require.Equal(t, tc.local, e.Local())
			require.Equal(t, tc.want.kind == kindUnix, e.Unix())
		})
	}
}

func TestEndpointOf(t *testing.T) {
	reply := func(protocol, address string, version int32) *bootapi.BootstrapResult {
		return &bootapi.BootstrapResult{Protocol: protocol, Address: address, Version: version}
	}
	e, err := EndpointOf(reply("TTRPC", "vsock://3:1024", 2))
	require.NoError(t, err)
	require.Equal(t, Endpoint{Protocol: "ttrpc", Address: "vsock://3:1024", Version: 2}, e)

	_, err = EndpointOf(reply("ttrpc", "vsock://3:1024", 4))
	require.True(t, errdefs.IsNotImplemented(err), "%v", err)

	for name, r := range map[string]*bootapi.BootstrapResult{
		"nothing":            nil,
		"no protocol":        reply("", "vsock://3:1024", 3),
		"another protocol":   reply("http", "vsock://3:1024", 3),
		"no version":         reply("ttrpc", "vsock://3:1024", 0),
		"version 1":          reply("ttrpc", "vsock://3:1024", 1),
		"negative version":   reply("ttrpc", "vsock://3:1024", -2),
		"no address":         reply("ttrpc", "", 3),
		"no path":            reply("ttrpc", "unix://", 3),
		"no abstract name":   reply("ttrpc", "unix://@", 3),
		"NUL alone":          reply("ttrpc", "\x00", 3),
		"relative path":      reply("ttrpc", "unix://run/s", 3),
		"relative gRPC path": reply("grpc", "run/s", 3),
		"another scheme":     reply("ttrpc", "tcp://127.0.0.1:80", 3),
		"two lines":          reply("ttrpc", "warning: deprecated\nunix:///run/s", 3),
		"a sentence":         reply("ttrpc", "cannot find runc", 3),
		"NUL in a path":      reply("ttrpc", "unix:///run/\x00s", 3),
		"vsock cid":          reply("ttrpc", "vsock://4294967296:1", 3),
		"vsock port":         reply("ttrpc", "vsock://3:-1", 3),
		"vsock without port": reply("ttrpc", "vsock://3", 3),
		"hvsock port":        reply("ttrpc", "hvsock:///run/s:x", 3),
		"hvsock no port":     reply("ttrpc", "hvsock:///run/s", 3),
		"hvsock no path":     reply("ttrpc", "hvsock://:1", 3),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := EndpointOf(r)
			require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
		})
	}

	_, err = ParseEndpoint("unix:///run/s", 3)
	require.True(t, errdefs.IsInvalidArgument(err), "no protocol before it: %v", err)
	_, err = ParseEndpoint("ttrpc+vsock://3:1024", math.MaxUint32)
	require.True(t, errdefs.IsNotImplemented(err), "%v", err)
}

// What an absolute path without a scheme means for ttrpc, only the file system
// can tell.
func TestLocalOfBarePath(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("abstract sockets")
	}
	path := filepath.Join(socketDir(t), "s")
	e := Endpoint{Protocol: protocolTTRPC, Address: path, Version: 2}
	require.False(t, e.Local())
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	require.True(t, e.Local())
	require.NoError(t, l.Close())
	require.False(t, e.Local())
}

func FuzzParseEndpoint(f *testing.F) {
	for _, seed := range []string{
		"ttrpc+unix:///run/s", "grpc+/run/s", "ttrpc+\x00name", "ttrpc+hvsock:///a:b:1", "grpc+vsock://3:1",
		"+", "ttrpc+", "ttrpc+://", "ttrpc+unix://@", "TTRPC+x", "ttrpc+a\nb", `ttrpc+\\.\pipe\x`,
		"ttrpc+npipe:////./pipe/x",
	} {
		f.Add(seed, uint32(3))
	}
	f.Fuzz(func(t *testing.T, address string, version uint32) {
		e, err := ParseEndpoint(address, version)
		checkParsed(t, e, err)
		if err == nil {
			require.Equal(t, uint32(e.Version), version)
			require.True(t, strings.HasSuffix(address, e.Address))
		}
	})
}

func FuzzEndpointOf(f *testing.F) {
	f.Add("ttrpc", "unix:///run/s", int32(3))
	f.Add("grpc", "\x00name", int32(2))
	f.Add("", "", int32(-1))
	f.Fuzz(func(t *testing.T, protocol, address string, version int32) {
		e, err := EndpointOf(&bootapi.BootstrapResult{Protocol: protocol, Address: address, Version: version})
		checkParsed(t, e, err)
		if err == nil {
			require.Equal(t, address, e.Address)
		}
	})
}

// checkParsed checks what holds for every input.
func checkParsed(t *testing.T, e Endpoint, err error) {
	if err != nil {
		require.Zero(t, e)
		require.True(t, errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err), "%v", err)
		return
	}
	require.Contains(t, []string{protocolTTRPC, protocolGRPC}, e.Protocol)
	require.Contains(t, []int{2, 3}, e.Version)
	back, err := ParseEndpoint(e.String(), uint32(e.Version))
	require.NoError(t, err)
	require.Equal(t, e, back)
	tg, err := e.target()
	require.NoError(t, err)
	if tg.kind == kindUnix {
		require.NotEmpty(t, tg.unixPath())
	}
	if e.Local() {
		require.True(t, filepath.IsAbs(tg.path))
	}
}
