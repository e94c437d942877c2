// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestPolicyAccessList: the group of root may write, as long as the group's bits are the group's and not the mask of an
// access list, which may name any user.
func TestPolicyAccessList(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make files of others")
	}
	dir := filepath.Join(t.TempDir(), "bin")
	require.NoError(t, os.Mkdir(dir, 0o755))
	shim := filepath.Join(dir, "shim")
	require.NoError(t, os.WriteFile(shim, nil, 0o755))
	for _, path := range []string{shim, dir} {
		require.NoError(t, os.Chmod(path, 0o775))
		require.NoError(t, checkOwners(shim))
		giveUser(t, path, 65534, 7)
		require.ErrorContains(t, checkOwners(shim), path+" has an access list")
		require.NoError(t, os.Chmod(path, 0o755), "which takes the write bit off the mask")
		require.NoError(t, checkOwners(shim))
	}
}

// giveUser puts an access list on a file, by which its owner, its group and the user may do perm.
func giveUser(t *testing.T, path string, uid uint32, perm uint16) {
	const nobody = ^uint32(0)
	list := binary.LittleEndian.AppendUint32(nil, 2) // the version
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{
		{0x01, 7, nobody}, {0x02, perm, uid}, {0x04, perm, nobody}, {0x10, perm, nobody}, {0x20, 5, nobody},
	} {
		list = binary.LittleEndian.AppendUint16(list, e.tag)
		list = binary.LittleEndian.AppendUint16(list, e.perm)
		list = binary.LittleEndian.AppendUint32(list, e.id)
	}
	err := unix.Setxattr(path, "system.posix_acl_access", list, 0)
	if err == unix.EOPNOTSUPP {
		t.Skip("the file system has no access lists")
	}
	require.NoError(t, err)
}
