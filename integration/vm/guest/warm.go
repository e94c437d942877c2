// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pkg/errors"
)

// warm looks at the shims that wait for a container, once a second for as long as a process lives, or once, and prints
// how many there were at most, and how much memory they held at the last look, in KiB. The process is a load of so many
// workers, each of which has one container at a time.
//
// From outside, a shim that waits cannot be told from one that was just started for a create, or whose container was
// just deleted. But there are no more of those than workers without a container: what is beyond them waits, or is on
// its way out. The largest are taken for the workers'.
func warm(args []string) error {
	pid, err := number(args, 0)
	if err != nil {
		return err
	}
	workers, err := number(args, 1)
	if err != nil {
		return err
	}
	looks, idle, most, held := 0, 0, 0, 0
	for {
		serving, sizes, err := shimsByUse("/")
		if err != nil {
			return err
		}
		looks++
		var n int
		n, held = beyond(sizes, workers-serving)
		idle, most = max(idle, len(sizes)), max(most, n)
		if !alive(pid) {
			break
		}
		time.Sleep(time.Second)
	}
	fmt.Printf("looks: %d\nidle: %d\nbeyond: %d\nheld: %d\n", looks, idle, most, held)
	return nil
}

// beyond is how many shims there are that no worker has use for, and what they hold.
func beyond(idle []int, workers int) (count, held int) {
	slices.Sort(idle)
	rest := idle[:max(0, len(idle)-max(0, workers))]
	for _, size := range rest {
		held += size
	}
	return len(rest), held
}

// shimsByUse is how many shims serve a container, which have children, and what each of the others holds of its own.
func shimsByUse(top string) (serving int, idle []int, err error) {
	all, err := shims(top)
	if err != nil {
		return 0, nil, err
	}
	parents := map[int]bool{}
	sizes := map[int]int{}
	dir := func(pid int) string { return filepath.Join(top, "proc", strconv.Itoa(pid)) }
	for _, s := range all {
		children, err := os.ReadFile(filepath.Join(dir(s.pid), "task", strconv.Itoa(s.pid), "children"))
		if err != nil || s.helps() {
			continue // it has ended, or will at once
		}
		if len(children) > 0 {
			parents[s.pid] = true
		} else if size, err := kilobytes(filepath.Join(dir(s.pid), "smaps_rollup"), "Pss_Anon:"); err == nil {
			sizes[s.pid] = size
		}
	}
	for pid, size := range sizes {
		if !parents[parent(dir(pid))] { // a child that has not become runc yet is no shim
			idle = append(idle, size)
		}
	}
	return len(parents), idle, nil
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

// helps tells a process that starts or cleans up for a shim, and ends.
func (s shim) helps() bool {
	words := strings.Fields(s.cmdline)
	return len(words) == 0 || slices.Contains([]string{"start", "delete", "-info"}, words[len(words)-1])
}

// parent of the process; 0 when it has ended.
func parent(dir string) int {
	fields := statOf(dir)
	if len(fields) < 2 {
		return 0
	}
	pid, _ := strconv.Atoi(fields[1]) // the kernel writes a number there
	return pid
}

// statOf is what the kernel tells of a process, from its state on; nothing when it has ended.
func statOf(dir string) []string {
	stat, _ := os.ReadFile(filepath.Join(dir, "stat"))
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // its name, before, may hold anything
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
	return 0, errors.Errorf("there is no %s in %s", name, path)
}
