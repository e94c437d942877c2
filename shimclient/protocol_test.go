// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func writeBinary(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o755))
	return path
}

func TestProtocolByContent(t *testing.T) {
	const marker = "containerd.runtime.bootstrap.v1"
	bootstrap, legacy := ProtocolBootstrap, ProtocolLegacy
	for name, tc := range map[string]struct {
		content string
		first   StartProtocol
		silent  bool
	}{
		"ELF with the name":           {"\x7fELF...." + marker + "....", bootstrap, false},
		"ELF without":                 {"\x7fELF" + strings.Repeat("x", 1<<20), legacy, false},
		"PE with the name":            {"MZ\x90\x00...." + marker, bootstrap, false},
		"Mach-O with the name":        {"\xcf\xfa\xed\xfe...." + marker, bootstrap, false},
		"packed":                      {"\x7fELF....UPX!....", legacy, true},
		"packed, yet with the name":   {"\x7fELF....UPX!...." + marker, bootstrap, false},
		"script":                      {"#!/bin/sh\nexec shim \"$@\"\n", legacy, true},
		"script that names the words": {"#!/bin/sh\n# " + marker + "\n", legacy, true},
		"empty":                       {"", legacy, true},
		"three bytes":                 {"\x7fEL", legacy, true},
	} {
		t.Run(name, func(t *testing.T) {
			var book protocolBook
			order, file, g := book.order(writeBinary(t, "containerd-shim-x-v1", tc.content), ProtocolAuto)
			require.Equal(t, []StartProtocol{tc.first, tc.first.other()}, order)
			require.Equal(t, tc.silent, g.silent)
			require.NotZero(t, file)
		})
	}
}

// A name that lies across two reads of the file must be seen wherever it lies.
func TestProtocolNameAcrossChunks(t *testing.T) {
	const chunk = 256 << 10
	for shift := range len(bootstrapPackage) + 1 {
		data := bytes.Repeat([]byte{'x'}, 2*chunk+100)
		copy(data[chunk+len(serviceName)-1-shift:], bootstrapPackage)
		found, err := scan(bytes.NewReader(data), bootstrapPackage, []byte(serviceName))
		require.NoError(t, err)
		require.Equal(t, []bool{true, false}, found, "shifted by %d", shift)
	}
}

func TestProtocolIsFixedByConfigOrName(t *testing.T) {
	var book protocolBook
	path := writeBinary(t, "containerd-shim-x-v1", "\x7fELFcontainerd.runtime.bootstrap.v1")
	order, _, _ := book.order(path, ProtocolLegacy)
	require.Equal(t, []StartProtocol{ProtocolLegacy}, order)
	for _, name := range []string{"containerd-shim-runc-v1", "containerd-shim-runhcs-v1.exe"} {
		path := writeBinary(t, name, "\x7fELFcontainerd.runtime.bootstrap.v1")
		order, _, _ := book.order(path, ProtocolAuto)
		require.Equal(t, []StartProtocol{ProtocolLegacy}, order)
		order, _, _ = book.order(path, ProtocolBootstrap)
		require.Equal(t, []StartProtocol{ProtocolBootstrap}, order)
	}
}

func TestProtocolIsRememberedByFile(t *testing.T) {
	var book protocolBook
	path := writeBinary(t, "containerd-shim-x-v1", "#!/bin/sh\n")
	_, file, _ := book.order(path, ProtocolAuto)
	book.learn(file, guess{protocol: ProtocolBootstrap})
	order, _, g := book.order(path, ProtocolAuto)
	require.Equal(t, ProtocolBootstrap, order[0])
	require.False(t, g.silent)

	upgraded := writeBinary(t, "new", "#!/bin/sh\n#v2\n")
	require.NoError(t, os.Rename(upgraded, path))
	order, _, _ = book.order(path, ProtocolAuto)
	require.Equal(t, ProtocolLegacy, order[0], "another file was taken for the one known")
}

func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		protocol StartProtocol
		said     string
		silent   bool
		want     bool
	}{
		{ProtocolLegacy,
			"io.containerd.runc.v2: shim was started through the deprecated API but was built against the new API; if …", false, true},
		{ProtocolLegacy, "bootstrap parameters do not match command-line arguments", false, true},
		{ProtocolBootstrap, "io.containerd.runc.v2: type with url c1: not found", false, true},
		{ProtocolBootstrap, "failed: WireError(UnexpectedEof)", false, true},
		{ProtocolLegacy, "type with url c1: not found", false, false},
		{ProtocolLegacy, "failed to load cgroup /x: no such file or directory", true, false},
		{ProtocolBootstrap, "open config.json: no such file or directory", false, false},
		{ProtocolLegacy, " \n", true, true},
		{ProtocolLegacy, "", false, false},
	} {
		require.Equal(t, tc.want, refused(tc.protocol, tc.said, tc.silent), "%+v", tc)
	}
}
