// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package shimclient

import (
	"context"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

func notHere(what string) error {
	return errors.Wrapf(errdefs.ErrNotImplemented, "cannot %s on this platform", what)
}

// LookupProcess is not implemented on this platform.
func LookupProcess(int) (ProcessID, error) {
	return ProcessID{}, notHere("tell the identity of a process")
}

// Alive reports whether the process may run. Nothing is certain on this
// platform, except that the zero value does not.
func (p ProcessID) Alive() bool { return p.Pid > 0 }

// Hold is not implemented on this platform.
func (p ProcessID) Hold() (*Held, error) { return nil, notHere("hold a process") }

// Signal is not implemented on this platform.
func (p ProcessID) Signal(syscall.Signal) error { return notHere("signal a process by its identity") }

// DescendsFrom cannot be told on this platform.
func (p ProcessID) DescendsFrom(ProcessID) bool { return false }

// LeadsSession cannot be told on this platform.
func (p ProcessID) LeadsSession() bool { return false }

// HasChildren is not implemented on this platform.
func (p ProcessID) HasChildren(context.Context) (bool, error) {
	return false, notHere("look at processes")
}

// Now is not known on this platform.
func Now() uint64 { return 0 }

// StartedBefore cannot be told on this platform.
func (p ProcessID) StartedBefore(time.Time) bool { return false }

// Wait is not implemented on this platform.
func (p ProcessID) Wait(context.Context) error {
	if p.Pid <= 0 {
		return nil
	}
	return notHere("wait for a process by its identity")
}

// Usage is not implemented on this platform.
func (p ProcessID) OwnMemory() (uint64, error) { return 0, notHere("look at a process") }

// Usage is not available.
func (p ProcessID) Usage() (Usage, error) { return Usage{}, notHere("look at a process") }

// DumpStacks is not implemented on this platform.
func (p ProcessID) DumpStacks() error { return notHere("make a shim dump its stacks") }

// Catches is not implemented on this platform.
func (p ProcessID) Catches(syscall.Signal) (bool, error) {
	return false, notHere("tell what a process catches")
}

// VerifyShim is not implemented on this platform.
func VerifyShim(context.Context, int, Binary, string) (ProcessID, error) {
	return ProcessID{}, notHere("verify the process of a shim")
}

// FindByToken is not implemented on this platform.
func FindByToken(context.Context, string) ([]ProcessID, error) {
	return nil, notHere("look at processes")
}

// FindByDir is not implemented on this platform.
func FindByDir(context.Context, string) ([]ProcessID, error) {
	return nil, notHere("look at processes")
}

// EndLaunch is not implemented on this platform.
func EndLaunch(_ context.Context, token string, _ func(ProcessID) bool) error {
	if err := checkToken(token); err != nil {
		return err
	}
	return notHere("end a launch by its token")
}

// CheckNamed has nothing to check: no launch is named on this platform.
func (l *Launcher) CheckNamed(context.Context, Binary, string, ProcessID) error { return nil }

// BootID is not known on this platform.
func BootID() string { return "" }
