// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/pkg/errors"
)

// Stop sends SIGSTOP and returns when the process is stopped.
func (p Proc) Stop() error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return p.until("to stop", func() bool { state, _, _ := procStat(p.Pid); return state == "T" })
}

// Cont sends SIGCONT and returns when the process is not stopped any more.
func (p Proc) Cont() error {
	if err := p.Signal(syscall.SIGCONT); err != nil {
		return err
	}
	return p.until("to go on", func() bool { state, _, _ := procStat(p.Pid); return state != "T" })
}

// procStat reads the state and the start time of a process.
func procStat(pid int) (state string, start uint64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, err
	}
	// The command name, in parentheses, may hold anything.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return "", 0, errors.Errorf("cannot parse the stat of process %d", pid)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0], start, err
}
