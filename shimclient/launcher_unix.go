// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package shimclient

import (
	"os"
	"syscall"
)

// maxPipe is more than a pipe holds by default on any Unix (64 KiB); the largest
// that a process may ask for is 1 MiB.
const maxPipe = 1 << 20

// readNow reads from a pipe without waiting; 0 when there is nothing, or no more
// to come.
func readNow(f *os.File, buf []byte) int {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	_ = conn.Read(func(fd uintptr) bool {
		n, err = retried(func() (int, error) { return syscall.Read(int(fd), buf) })
		return true
	})
	if err != nil {
		return 0
	}
	return n
}

func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func killGroup(p *os.Process) { _ = syscall.Kill(-p.Pid, syscall.SIGKILL) }
