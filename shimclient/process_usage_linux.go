// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// Usage looks at the process. NotFound when it is gone.
func (p ProcessID) Usage() (Usage, error) {
	st, err := readStat(p.Pid)
	if err != nil {
		return Usage{}, err
	}
	if st.start != p.StartTime {
		return Usage{}, p.gone()
	}
	u := Usage{
		State: string(st.state),
		RSS:   st.pages * uint64(os.Getpagesize()),
		CPU:   time.Duration(st.ticks) * (time.Second / ticksPerSecond),
	}
	// The text of the link alone: the file may be on a file system that does not answer.
	if exe, err := os.Readlink(procPath(p.Pid, "exe")); err == nil {
		u.Deleted = strings.HasSuffix(exe, " (deleted)")
	}
	return u, nil
}

// OwnMemory is how many bytes of the resident memory of the process are its alone, not of files or of others. NotFound
// when it is gone.
func (p ProcessID) OwnMemory() (uint64, error) {
	statm, err := os.ReadFile(procPath(p.Pid, "statm"))
	if !p.Alive() { // what was read may be another's
		return 0, p.gone()
	}
	if err != nil {
		return 0, errors.Wrapf(err, "cannot look at process %d", p.Pid)
	}
	f := strings.Fields(string(statm))
	if len(f) < 3 {
		return 0, errors.Errorf("cannot read the memory of process %d", p.Pid)
	}
	resident, rerr := strconv.ParseUint(f[1], 10, 48)
	shared, serr := strconv.ParseUint(f[2], 10, 48)
	if rerr != nil || serr != nil || shared > resident {
		return 0, errors.Errorf("cannot read the memory of process %d", p.Pid)
	}
	return (resident - shared) * uint64(os.Getpagesize()), nil
}

// DumpStacks makes a shim write the stacks of its goroutines to its log, as runc's shim and all that are made with
// containerd's package do at SIGUSR1. FailedPrecondition for a shim that has no handler for the signal, as Rust's
// have not: it would end.
func (p ProcessID) DumpStacks() error {
	caught, err := p.Catches(syscall.SIGUSR1)
	if err != nil {
		return err
	}
	if !caught {
		return errors.Wrapf(errdefs.ErrFailedPrecondition,
			"the shim (pid %d) does not catch SIGUSR1, which would end it", p.Pid)
	}
	return p.Signal(syscall.SIGUSR1)
}

// Catches tells whether the process has a handler for the signal: one that it neither catches nor ignores does what the
// signal does by default, which for most is its end. NotFound when it is gone.
func (p ProcessID) Catches(sig syscall.Signal) (bool, error) {
	status, err := os.ReadFile(procPath(p.Pid, "status"))
	if err != nil {
		if !p.Alive() {
			return false, p.gone()
		}
		return false, errors.Wrapf(err, "cannot look at process %d", p.Pid)
	}
	if !p.Alive() { // what was read may be another's
		return false, p.gone()
	}
	for line := range bytes.Lines(status) {
		value, ok := bytes.CutPrefix(line, []byte("SigCgt:"))
		if !ok {
			continue
		}
		caught, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		return caught&(1<<(uint(sig)-1)) != 0, errors.Wrapf(err, "cannot read the signals of process %d", p.Pid)
	}
	return false, errors.Errorf("cannot tell which signals process %d catches", p.Pid)
}
