// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pkg/errors"
)

// warm looks at the shims that wait for a container, once a second for as long as a process lives, and prints how
// many there were at most, and which share of the machine's memory they held at most, in percent, by PSS: what they
// share with others counts once.
func warm(args []string) error {
	pid, err := number(args, 0)
	if err != nil {
		return err
	}
	total, err := kilobytes("/proc/meminfo", "MemTotal:")
	if err != nil {
		return err
	}
	if total == 0 {
		return errors.New("the kernel does not say how much memory there is")
	}
	most, mostHeld, looks := 0, 0, 0
	for ; alive(pid); looks++ {
		all, err := shims("/")
		if err != nil {
			return err
		}
		n, held := 0, 0
		for _, s := range all {
			if !s.waits() {
				continue
			}
			pss, err := kilobytes(fmt.Sprintf("/proc/%d/smaps_rollup", s.pid), "Pss:")
			if err != nil {
				continue // it has ended
			}
			n, held = n+1, held+pss
		}
		most, mostHeld = max(most, n), max(mostHeld, held)
		time.Sleep(time.Second)
	}
	fmt.Printf("looks: %d\nmost: %d\npercent: %d\n", looks, most, (mostHeld*100+total-1)/total)
	return nil
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

// waits tells a shim without a container: it has the id of a warm one, and no child, which one that serves a
// container has.
func (s shim) waits() bool {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", s.pid))
	return err == nil && strings.Contains(s.cmdline, " -id _") && len(children) == 0
}

// kilobytes is the number behind a name in a file of proc.
func kilobytes(path, name string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, errors.Wrap(err, "cannot read how much memory there is")
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return n, errors.Wrapf(err, "%s in %s", name, path)
		}
	}
	return 0, nil
}
