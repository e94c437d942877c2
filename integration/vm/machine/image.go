// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/pkg/errors"
)

// Image is a node's system, ready to boot: the files are never written to.
type Image struct {
	// Kernel, Initrd and Disk are paths; the disk is a sparse raw ext4 file system without a partition table.
	Kernel, Initrd, Disk string

	root  string // the directory that the disk was made from
	saved *saved // nil unless it is of a machine that runs
}

const (
	suite    = "bookworm"
	diskSize = 4 << 30 // sparse
)

// packages is what a node needs, and what the checks use there. containerd is Debian's own, with its runc.
var packages = []string{
	"apparmor", "containerd", "containernetworking-plugins", "dbus", "e2fsprogs", "iproute2", "iptables", "jq", "kmod",
	"libseccomp2", "linux-image-cloud-amd64", "procps", "systemd-sysv", "udev", "busybox-static",
}

// masked units cost time at each boot and no check looks at them. Without udev there is no unit for a device: the
// console does not wait for its own.
var masked = []string{
	"apparmor.service", "apt-daily-upgrade.timer", "apt-daily.timer", "cryptsetup.target", "dev-hugepages.mount",
	"dev-mqueue.mount", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty.target",
	"integritysetup.target", "kmod-static-nodes.service", "proc-sys-fs-binfmt_misc.automount", "remote-fs.target", "swap.target",
	"sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
	"systemd-ask-password-console.path", "systemd-ask-password-wall.path", "systemd-binfmt.service",
	"systemd-firstboot.service", "systemd-fsck-root.service", "systemd-fsckd.socket", "systemd-initctl.socket",
	"systemd-journal-flush.service", "systemd-journald-audit.socket", "systemd-logind.service",
	"systemd-machine-id-commit.service", "systemd-modules-load.service", "systemd-pcrphase-sysinit.service",
	"systemd-pcrphase.service", "systemd-pstore.service", "systemd-random-seed.service", "systemd-remount-fs.service",
	"systemd-repart.service", "systemd-sysctl.service", "systemd-sysusers.service", "systemd-timesyncd.service",
	"systemd-tmpfiles-clean.timer", "systemd-tmpfiles-setup-dev.service", "systemd-tmpfiles-setup.service",
	"systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket", "systemd-udevd.service",
	"systemd-update-utmp.service", "systemd-user-sessions.service", "veritysetup.target",
}

// generators would be run at each boot, and make units of a file that is not there, of a kernel argument, of System
// V's scripts.
const generators = "lib/systemd/system-generators"

// files are put into the image as they are.
var files = map[string]string{
	"etc/hostname": "node\n",
	// With an id of its own the machine does not take its first boot for one, on which every unit is looked at for its
	// presets.
	"etc/machine-id":                      "a4f1c0de5e5c4b7fb2ad3c0ffee15e1f\n",
	"etc/systemd/journald.conf.d/vm.conf": "[Journal]\nStorage=volatile\n",
	// The console logs in by itself, for people, who say so to the kernel; the agent has the second port.
	"etc/systemd/system/vm-console.service": `[Unit]
Description=A shell on the console
ConditionKernelCommandLine=` + consoleArg + `
After=vm-agent.service
[Service]
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200 ttyS0 vt220
Type=idle
Restart=always
UtmpIdentifier=ttyS0
TTYPath=/dev/ttyS0
[Install]
WantedBy=multi-user.target
`,
	"etc/systemd/system/vm-agent.service": `[Unit]
Description=Runs what the host asks for
After=basic.target
[Service]
ExecStartPre=/bin/mkdir -p /payload
ExecStartPre=/bin/mount -t ext4 -o ro /dev/vdb /payload
ExecStart=/payload/guest agent /dev/ttyS1
OOMScoreAdjust=-1000
KillMode=process
[Install]
WantedBy=multi-user.target
`,
}

// consoleArg is the kernel's argument with which the console has a shell.
const consoleArg = "vm.console"

// initScript mounts the disk and hands over. Debian's own initrd would do it, too, and take many times as long to
// unpack and look around where there is no KVM.
const initScript = `#!/bin/busybox sh
B=/bin/busybox
for m in /m/*.ko; do $B insmod $m; done
$B mount -t devtmpfs dev /dev
while [ ! -b /dev/vda ]; do $B sleep 0.05; done
$B mount -t ext4 -o rw /dev/vda /root
$B mount --move /dev /root/dev
exec $B switch_root /root /lib/systemd/systemd
`

// modules lead to the disk, in the order in which they are loaded.
var modules = []string{"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"}

// key is a hash of all that the image is made from. A security update of Debian does not change it: the image is as
// old as its directory, remove that to have a new one.
func key() string {
	h := sha256.New()
	fmt.Fprintln(h, suite, diskSize, packages, masked, generators, initScript, modules)
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(h, "%s\n%s\n", name, files[name])
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// Build returns the image out of the directory cache, and builds it first if it is not there. It must be called as
// root, and by one process at a time for each directory.
func Build(cache string, progress io.Writer) (*Image, error) {
	dir := filepath.Join(cache, "image-"+key())
	img := &Image{
		Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd"), Disk: filepath.Join(dir, "disk"),
		root: filepath.Join(dir, "root"),
	}
	if _, err := os.Stat(dir); err == nil {
		return img, nil
	}
	start := time.Now()
	fmt.Fprintln(progress, "vm: building the machine's image, some minutes …")
	tmp := dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return nil, errors.Wrap(err, "cannot remove a half built image")
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return nil, errors.Wrap(err, "cannot make the image's directory")
	}
	defer os.RemoveAll(tmp)
	if err := fill(tmp); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, errors.Wrap(err, "cannot keep the image")
	}
	fmt.Fprintf(progress, "vm: building the image took %.0f s\n", time.Since(start).Seconds())
	return img, nil
}

// fill makes kernel, initrd and disk in dir.
func fill(dir string) error {
	root := filepath.Join(dir, "root")
	args := []string{"--variant=apt", "--mode=root", "--include=" + strings.Join(packages, ",")}
	for _, path := range []string{"/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*"} {
		args = append(args, "--dpkgopt=path-exclude="+path)
	}
	if err := run("mmdebstrap", append(args, suite, root)...); err != nil {
		return err
	}
	if err := settle(root); err != nil {
		return err
	}
	kernels, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if len(kernels) != 1 {
		return errors.Errorf("there are %d kernels in the image, not one", len(kernels))
	}
	version := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	if err := os.Rename(kernels[0], filepath.Join(dir, "vmlinuz")); err != nil {
		return errors.Wrap(err, "cannot take the kernel out of the image")
	}
	if err := writeInitrd(filepath.Join(dir, "initrd"), root, version); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(root, "boot")); err != nil {
		return errors.Wrap(err, "cannot empty the image's boot directory")
	}
	return Disk(filepath.Join(dir, "disk"), root, diskSize)
}

// Install makes another image: this one's system with Debian packages installed on top, by dpkg, without the system
// running. What the image consists of beyond this one is in dir.
func (img *Image) Install(dir string, debs ...string) (*Image, error) {
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, errors.Wrap(err, "cannot make the image's directory")
	}
	if err := run("cp", "-a", "--reflink=auto", img.root, root); err != nil {
		return nil, err
	}
	defer os.RemoveAll(root)
	for _, deb := range debs {
		if err := run("cp", deb, filepath.Join(root, "package.deb")); err != nil {
			return nil, err
		}
		if err := run("chroot", root, "dpkg", "--install", "/package.deb"); err != nil {
			return nil, err
		}
	}
	if err := os.Remove(filepath.Join(root, "package.deb")); err != nil {
		return nil, errors.Wrap(err, "cannot remove a package from the image")
	}
	more := *img
	more.Disk = filepath.Join(dir, "disk")
	return &more, Disk(more.Disk, root, diskSize)
}

// settle makes a node of the packages.
func settle(root string) error {
	for name, text := range files {
		if err := write(filepath.Join(root, name), text); err != nil {
			return err
		}
	}
	for _, unit := range masked {
		if err := mask(filepath.Join(root, "etc/systemd/system", unit)); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(filepath.Join(root, generators))
	if err != nil {
		return errors.Wrap(err, "cannot list the image's generators")
	}
	for _, entry := range entries {
		if err := mask(filepath.Join(root, "etc/systemd/system-generators", entry.Name())); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"systemctl", "enable", "vm-agent.service", "vm-console.service"},
		{"systemctl", "set-default", "multi-user.target"},
		{"passwd", "-d", "root"},
	} {
		if err := run("chroot", append([]string{root}, args...)...); err != nil {
			return err
		}
	}
	return nil
}

// mask has systemd take what is of that name for empty.
func mask(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return errors.Wrap(err, "cannot make a directory in the image")
	}
	return errors.Wrap(os.Symlink("/dev/null", path), "cannot mask a part of the image")
}

func write(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return errors.Wrap(err, "cannot make a directory in the image")
	}
	return errors.Wrap(os.WriteFile(path, []byte(text), 0o644), "cannot write a file of the image")
}

// Disk makes an ext4 file system of a directory.
func Disk(path, dir string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return errors.Wrap(err, "cannot create a disk")
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return errors.Wrap(err, "cannot size a disk")
	}
	if err := f.Close(); err != nil {
		return errors.Wrap(err, "cannot create a disk")
	}
	return run("mke2fs", "-q", "-t", "ext4", "-d", dir, path)
}
