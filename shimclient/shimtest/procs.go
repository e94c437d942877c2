// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pkg/errors"
)

// The roles of a process of an install.
const (
	RoleStart  = "start"  // a helper
	RoleDelete = "delete" // a helper
	RoleInfo   = "info"   // a helper
	RoleDaemon = "daemon" // serves the API
	RoleGuest  = "guest"  // an init, an exec or a sandbox
)

// Proc is a living process of an install.
type Proc struct {
	Pid   int
	Start uint64 // field 22 of /proc/PID/stat
	Role  string
	// ID is what -id said, and for a guest the id of its container.
	ID string
	// Bundle is the working directory, and for a guest the bundle of its container.
	Bundle string
	Argv   []string
}

func (p Proc) String() string {
	return fmt.Sprintf("%s %d (%s) in %s", p.Role, p.Pid, strings.Join(p.Argv, " "), p.Bundle)
}

// Alive says whether the process runs, or is stopped, under the pid it had. A zombie is dead.
func (p Proc) Alive() bool {
	state, start, err := procStat(p.Pid)
	return err == nil && start == p.Start && state != "Z" && state != "X"
}

// Signal sends a signal to this very process.
func (p Proc) Signal(sig syscall.Signal) error {
	h, err := os.FindProcess(p.Pid) // holds a pidfd from here on
	if err != nil {
		return errors.Wrapf(err, "finding process %d", p.Pid)
	}
	defer h.Release()
	if !p.Alive() {
		return errors.Errorf("process %d is gone", p.Pid)
	}
	return errors.Wrapf(h.Signal(sig), "signalling process %d", p.Pid)
}

// Kill ends the process, and returns when it is gone. It is no error if it was gone already.
func (p Proc) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil && p.Alive() {
		return err
	}
	return p.until("to end", func() bool { return !p.Alive() })
}

func (p Proc) until(what string, done func() bool) error {
	for deadline := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.Errorf("waiting in vain for process %d %s", p.Pid, what)
		}
	}
	return nil
}

func startTime(pid int) (uint64, error) {
	_, start, err := procStat(pid)
	return start, err
}

// findProcs finds the processes that run a file of an install, which no daemonizing and no renaming hides.
func findProcs(home string) []Proc {
	dirs, _ := os.ReadDir("/proc")
	var found []Proc
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		if p, ok := lookProc(home, pid); ok {
			found = append(found, p)
		}
	}
	return found
}

func lookProc(home string, pid int) (Proc, bool) {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || filepath.Dir(exe) != home {
		return Proc{}, false
	}
	p := Proc{Pid: pid, Role: RoleDaemon}
	if p.Start, err = startTime(pid); err != nil || !p.Alive() {
		return Proc{}, false
	}
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	p.Argv = strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	if strings.HasPrefix(filepath.Base(exe), guestName) {
		p.Role = RoleGuest
		environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		for kv := range strings.SplitSeq(string(environ), "\x00") {
			if id, ok := strings.CutPrefix(kv, guestIDEnv+"="); ok {
				p.ID = id
			}
			if bundle, ok := strings.CutPrefix(kv, guestBundleEnv+"="); ok {
				p.Bundle = bundle
			}
		}
		return p, true
	}
	p.Bundle, _ = os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if i := slices.Index(p.Argv, "-id"); i >= 0 && i+1 < len(p.Argv) {
		p.ID = p.Argv[i+1]
	}
	switch {
	case slices.Contains(p.Argv, "-info"):
		p.Role = RoleInfo
	case p.Argv[len(p.Argv)-1] == "start":
		p.Role = RoleStart
	case p.Argv[len(p.Argv)-1] == "delete":
		p.Role = RoleDelete
	}
	return p, true
}
