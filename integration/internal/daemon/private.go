// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// roleEnv makes the test binary, started again, one of the helpers below.
const roleEnv = "SHIMYARD_TEST_ROLE"

const (
	roleHold  = "hold-run"  // owns a mount namespace with an empty /run
	roleEnter = "enter-run" // enters it and becomes the program in its arguments
)

// Role runs the helper that this process was started as, and does not return
// then. Each TestMain calls it first.
func Role() {
	role := os.Getenv(roleEnv)
	os.Unsetenv(roleEnv)
	var err error
	switch role {
	case "":
		return
	case roleHold:
		err = holdRun()
	case roleEnter:
		err = enterRun(os.Args[1], os.Args[2:])
	default:
		err = errors.Errorf("no such role: %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "helper:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runNamespace is a mount namespace with a tmpfs of its own at /run, which
// outlives the daemons that run in it.
type runNamespace struct {
	holder *exec.Cmd
	stdin  io.Closer
}

func newRunNamespace() (*runNamespace, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+roleHold)
	cmd.Stderr = os.Stderr
	// Go makes the whole tree private in the child, so nothing leaks back.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, errors.Wrap(err, "cannot make a mount namespace")
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Wrap(err, "cannot make a mount namespace")
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Wrap(err, "cannot make a mount namespace")
	}
	n := &runNamespace{holder: cmd, stdin: stdin}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		n.close()
		return nil, errors.New("cannot make a mount namespace: its holder failed")
	}
	return n, nil
}

// enter makes cmd run in the namespace; the pid is the program's own, as the
// helper becomes the program.
func (n *runNamespace) enter(cmd *exec.Cmd) {
	self := "/proc/self/exe"
	cmd.Args = append([]string{self, n.path(), cmd.Path}, cmd.Args[1:]...)
	cmd.Path = self
	cmd.Env = append(cmd.Env, roleEnv+"="+roleEnter)
}

func (n *runNamespace) path() string { return fmt.Sprintf("/proc/%d/ns/mnt", n.holder.Process.Pid) }

// Root is the namespace's root directory, seen from outside.
func (n *runNamespace) root() string { return fmt.Sprintf("/proc/%d/root", n.holder.Process.Pid) }

// close ends the holder, which is waiting for the end of its input.
func (n *runNamespace) close() {
	n.stdin.Close()
	_ = n.holder.Wait() // how it ended does not matter any more
}

func holdRun() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return errors.Wrap(err, "cannot mount /run")
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return errors.Wrap(err, "cannot wait for the end")
}

func enterRun(ns string, argv []string) error {
	// setns to a mount namespace wants a thread that shares its fs with none.
	runtime.LockOSThread()
	fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Wrapf(err, "cannot open %s", ns)
	}
	wd, err := os.Getwd()
	if err != nil {
		return errors.Wrap(err, "cannot keep the working directory")
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return errors.Wrap(err, "cannot leave the shared fs")
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNS); err != nil {
		return errors.Wrapf(err, "cannot enter %s", ns)
	}
	if err := unix.Chdir(wd); err != nil {
		return errors.Wrapf(err, "cannot go back to %s", wd)
	}
	return errors.Wrapf(unix.Exec(argv[0], argv, os.Environ()), "cannot run %s", argv[0])
}
