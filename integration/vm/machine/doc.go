// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package machine builds a Debian node as a disk image and runs it in a virtual machine: systemd, cgroup v2, Debian's
// kernel and containerd. It knows nothing of Shimyard: what is tested comes on a second disk, the payload.
//
// Nothing but Debian's packages is needed, and nothing is installed on the host: an image is built from a directory
// by mke2fs, and cached under the hash of all that it is built from. A Machine owns its disk, its directory and its
// one qemu process, and no network.
//
// An image may also be of a machine that runs (Snapshot): one of it goes on where that one was, for a tenth of what a boot
// costs without KVM, where most of a boot is the translation of what runs for the first time.
package machine

import (
	"fmt"
	"os/exec"
	"strings"

	"github.com/pkg/errors"
)

// Missing says which programs, and which Debian packages with them, are missing on this host; nil if all are there.
func Missing() error {
	var programs, packages []string
	for _, need := range []struct{ program, pkg string }{
		{"qemu-system-x86_64", "qemu-system-x86"}, {"mmdebstrap", "mmdebstrap"}, {"mke2fs", "e2fsprogs"}, {"dpkg-deb", "dpkg"},
	} {
		if _, err := exec.LookPath(need.program); err != nil {
			programs, packages = append(programs, need.program), append(packages, need.pkg)
		}
	}
	if len(programs) == 0 {
		return nil
	}
	return errors.Errorf("%s missing; on Debian and Ubuntu: apt-get install --no-install-recommends %s",
		strings.Join(programs, ", "), strings.Join(packages, " "))
}

// run runs a program of the host; its output is part of the error.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	return errors.Wrapf(err, "%s: %s", fmt.Sprint(append([]string{name}, args...)), out)
}
