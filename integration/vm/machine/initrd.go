// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/pkg/errors"
)

// writeInitrd packs busybox, the modules that lead to the disk, and the script into a cpio archive, as the kernel
// wants it.
func writeInitrd(path, root, kernel string) error {
	a := &cpio{}
	for _, dir := range []string{"bin", "dev", "m", "root"} {
		a.add(dir, 0o40755, nil)
	}
	busybox, err := os.ReadFile(filepath.Join(root, "bin/busybox"))
	if err != nil {
		return errors.Wrap(err, "cannot read the image's busybox")
	}
	a.add("bin/busybox", 0o100755, busybox)
	for n, name := range modules {
		data, err := findModule(filepath.Join(root, "lib/modules", kernel), name)
		if err != nil {
			return err
		}
		a.add(fmt.Sprintf("m/%d-%s.ko", n, name), 0o100644, data)
	}
	a.add("init", 0o100755, []byte(initScript))
	a.add("TRAILER!!!", 0, nil)
	return errors.Wrap(os.WriteFile(path, a.Bytes(), 0o644), "cannot write the initrd")
}

func findModule(dir, name string) ([]byte, error) {
	found, _ := filepath.Glob(filepath.Join(dir, "kernel/drivers/*", name+".ko"))
	if len(found) != 1 {
		return nil, errors.Errorf("the kernel has %d modules %s, not one", len(found), name)
	}
	data, err := os.ReadFile(found[0])
	return data, errors.Wrap(err, "cannot read a kernel module")
}

// cpio is an archive in the format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).
type cpio struct {
	bytes.Buffer
	inode int
}

func (a *cpio) add(name string, mode int, data []byte) {
	a.inode++
	const uid, gid, links, mtime, major, minor, check = 0, 0, 1, 0, 0, 0, 0
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, uid, gid, links, mtime, len(data), major, minor, major, minor, len(name)+1, check, name)
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *cpio) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}
