// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package box

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// ErrNotRoot says that only root can make a box.
var ErrNotRoot = errors.New("only root can make namespaces, mounts and cgroups")

const initRole = "shimyard-box-init"

// Run makes the box, runs its program and takes everything down again, also when ctx is done or the calling process
// dies. The error is an *exec.ExitError where the program failed.
func Run(ctx context.Context, s Spec) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	// The kernel kills the box when the thread that made it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	sweep()
	dir, err := os.MkdirTemp("", Prefix()+"*")
	if err != nil {
		return errors.Wrap(err, "cannot make a box")
	}
	s.dir = dir
	defer os.Remove(dir) // what is mounted on it ends with the namespace
	if s.cgroups, err = makeCgroups(filepath.Base(dir)); err != nil {
		removeCgroups(s.cgroups)
		return err
	}
	defer removeCgroups(s.cgroups)

	told, err := s.encode()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{initRole}
	cmd.Env = []string{wireEnv + "=" + told}
	cmd.Stdout, cmd.Stderr = s.Stdout, s.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true,
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return errors.Wrap(ctx.Err(), "the box was ended")
		}
		return err
	}
	return nil
}

// Dispatch turns the process into the first one of a box if that is what it was started as. Programs that call Run
// call it first in main.
func Dispatch() {
	if os.Args[0] == initRole {
		os.Exit(boot())
	}
}

func init() {
	if os.Args[0] == initRole {
		// A cgroup namespace is a thread's, and its children's.
		runtime.LockOSThread()
	}
}
