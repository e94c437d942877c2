// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package box

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// boot is the first process of a box: it furnishes it, starts the program, and reaps until the program has ended.
// What is alive then is killed by the kernel.
func boot() int {
	s, err := decode()
	if err == nil {
		err = s.furnish()
	}
	var pid int
	if err == nil {
		pid, err = s.start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "box:", err)
		return 125
	}
	return reap(pid)
}

func (s *Spec) furnish() error {
	if err := enter(s.cgroups); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return errors.Wrap(err, "cannot make a cgroup namespace")
	}
	cgroups, err := hierarchies() // as the machine has them
	if err != nil {
		return err
	}
	root, err := s.mountRoot()
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return mountKernel(root) },
		func() error { return mountCgroups(root, cgroups) },
		func() error { return s.share(root) },
		func() error { return s.writeFiles(root) },
		func() error { return pivot(root) },
		func() error { return errors.Wrap(unix.Sethostname([]byte(hostname)), "cannot name the box") },
		network,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

const hostname = "box"

// start starts the program as a child of this process.
func (s *Spec) start() (int, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, errors.Wrap(err, "cannot open the program's input")
	}
	defer null.Close()
	p, err := os.StartProcess(self, append([]string{self}, s.Args...), &os.ProcAttr{
		Dir: "/", Env: s.Env, Files: []*os.File{null, os.Stdout, os.Stderr},
	})
	if err != nil {
		return 0, errors.Wrap(err, "cannot start the program in the box")
	}
	return p.Pid, nil
}

// reap waits for every child and every orphan until pid has ended, and returns its exit status.
func reap(pid int) int {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 125
		case got == pid && status.Signaled():
			return 128 + int(status.Signal())
		case got == pid:
			return status.ExitStatus()
		}
	}
}

// self is the copy of the calling program.
var self = filepath.Join(Programs, "conformance")

// writeFiles makes the few files that differ from the machine's.
func (s *Spec) writeFiles(root string) error {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return errors.Wrap(err, "cannot read the program itself")
	}
	bundle, err := os.ReadFile(root + trustStore)
	if err != nil && !os.IsNotExist(err) {
		return errors.Wrap(err, "cannot read the certificates that the machine trusts")
	}
	hosts := "127.0.0.1 localhost\n::1 localhost\n" + Address + " " + hostname + "\n"
	for _, name := range s.Hosts {
		hosts += "127.0.0.1 " + name + "\n"
	}
	for _, f := range []struct {
		path string
		mode os.FileMode
		data []byte
	}{
		{self, 0o755, program},
		{"/etc/hosts", 0o644, []byte(hosts)},
		{"/etc/hostname", 0o644, []byte(hostname + "\n")},
		{"/etc/resolv.conf", 0o644, []byte("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")},
		{"/etc/nsswitch.conf", 0o644, []byte("passwd: files\ngroup: files\nhosts: files dns\n")},
		{trustStore, 0o644, append(append(bundle, '\n'), s.Trusted...)},
	} {
		path := filepath.Join(root, f.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return errors.Wrapf(err, "cannot make a directory for %s", f.path)
		}
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) { // a link may lead out of the box's files
			return errors.Wrapf(err, "cannot replace %s", f.path)
		}
		if err := os.WriteFile(path, f.data, f.mode); err != nil {
			return errors.Wrapf(err, "cannot write %s", f.path)
		}
	}
	return nil
}

// trustStore is where programs written in Go look first.
const trustStore = "/etc/ssl/certs/ca-certificates.crt"

// pivot makes root the root of every process in the mount namespace, and forgets the machine's.
func pivot(root string) error {
	old := filepath.Join(root, "mnt")
	if err := os.MkdirAll(old, 0o755); err != nil {
		return errors.Wrap(err, "cannot make a place for the old root")
	}
	if err := unix.PivotRoot(root, old); err != nil {
		return errors.Wrap(err, "cannot change the root")
	}
	if err := os.Chdir("/"); err != nil {
		return errors.Wrap(err, "cannot enter the new root")
	}
	return errors.Wrap(unix.Unmount("/mnt", unix.MNT_DETACH), "cannot leave the old root")
}

// escape makes a path fit for the options of an overlay mount.
var escape = strings.NewReplacer("\\", "\\\\", ":", "\\:", ",", "\\,")
