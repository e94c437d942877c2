// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
)

// RunDoomed starts the process where it may end by itself at any moment. True
// when it serves; Died tells the rest.
func (d *Daemon) RunDoomed() bool {
	d.tb.Helper()
	return d.run() == nil
}

// Died waits until the process has been ended by SIGKILL, which was not sent
// through d. False when it lives on after done was closed and grace has passed.
func (d *Daemon) Died(done <-chan struct{}, grace time.Duration) bool {
	d.tb.Helper()
	p := d.proc
	if p == nil {
		return true
	}
	select {
	case <-p.done:
	case <-done:
		select {
		case <-p.done:
		case <-time.After(grace):
			return false
		}
	}
	d.closeClient()
	d.proc = nil
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(d.tb, ok && status.Signaled() && status.Signal() == syscall.SIGKILL, "the daemon ended otherwise: %v",
		p.err)
	return true
}

// Abandon ends the daemon and removes everything of it by force, where what it
// leaves behind does not matter. The log stays for the end of the test.
func (d *Daemon) Abandon() {
	d.tb.Helper()
	d.signal(syscall.SIGKILL)
	log, err := os.ReadFile(d.logPath())
	require.NoError(d.tb, err)
	for _, err := range d.sweep() {
		d.tb.Errorf("cleaning up: %v", err)
	}
	require.NoError(d.tb, os.MkdirAll(filepath.Dir(d.logPath()), 0o700))
	require.NoError(d.tb, os.WriteFile(d.logPath(), log, 0o600))
}

// Reboot does to the directory what a reboot of the machine would: no process
// and no mount is left, nor what is kept in memory: state, sockets, cgroups. The
// daemon must not run.
func (d *Daemon) Reboot() {
	d.tb.Helper()
	for procs := d.Processes(); len(procs) > 0; procs = d.Processes() {
		for _, p := range procs {
			_ = syscall.Kill(p.Pid, syscall.SIGKILL) // it may have gone
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, target := range d.mountpoints() {
		require.NoError(d.tb, syscall.Unmount(target, syscall.MNT_DETACH))
	}
	for _, dir := range d.cgroups() {
		require.NoError(d.tb, os.Remove(dir))
	}
	for _, dir := range []string{"state", "runc", "s", "fifo"} {
		path := filepath.Join(d.Dir, dir)
		require.NoError(d.tb, os.RemoveAll(path))
		require.NoError(d.tb, os.Mkdir(path, 0o711))
	}
}
