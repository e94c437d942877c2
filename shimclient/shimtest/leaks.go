// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// CheckLeaks fails the test if it ends with more goroutines, open files or child processes, zombies included, than
// it has now. Call it before anything whose cleanup has to come first. What other tests do at the same time counts
// as well, so it is not for parallel tests.
func CheckLeaks(t testing.TB) {
	t.Helper()
	before := inventory()
	t.Cleanup(func() {
		if t.Failed() {
			return // what failed has said why, and may well have left things
		}
		var left []string
		for deadline := time.Now().Add(settle); ; time.Sleep(5 * time.Millisecond) {
			left = newIn(inventory(), before)
			if len(left) == 0 || time.Now().After(deadline) {
				break
			}
		}
		for _, l := range left {
			t.Errorf("leaked by the test: %s", l)
		}
	})
}

// inventory maps what there is to a description of it.
func inventory() map[string]string {
	all := map[string]string{}
	for id, stack := range goroutines() {
		all["goroutine "+id] = stack
	}
	for key, path := range openFiles() {
		all[key] = path
	}
	for key, name := range children() {
		all[key] = name
	}
	return all
}

func newIn(now, before map[string]string) []string {
	var found []string
	for key, what := range now {
		if _, ok := before[key]; !ok {
			found = append(found, key+": "+what)
		}
	}
	return found
}

var goroutineHead = regexp.MustCompile(`^goroutine (\d+) `)

// background are goroutines that a process starts once and never ends, through no fault of a test.
var background = []string{
	"os/signal.signal_recv", "os/signal.loop", "runtime.ensureSigM", "testing.(*T).Run", "testing.runTests",
	"testing.(*M).startAlarm", "runtime/trace.Start", "testing.runFuzzing", "created by testing.(*T).Run",
}

// goroutines maps ids to stacks, without the caller's own and those of background.
func goroutines() map[string]string {
	buf := make([]byte, 1<<16)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	found := map[string]string{}
	for _, stack := range strings.Split(string(buf), "\n\n")[1:] { // the first is the caller's
		if m := goroutineHead.FindStringSubmatch(stack); m != nil && !isBackground(stack) {
			found[m[1]] = stack
		}
	}
	return found
}

func isBackground(stack string) bool {
	for _, b := range background {
		if strings.Contains(stack, b) {
			return true
		}
	}
	return false
}

// openFiles maps each open file to what it is. The number is part of the key, so that a file that was closed and
// another that was opened under its number are told apart by the link alone where that names one file.
func openFiles() map[string]string {
	found := map[string]string{}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		path, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		// The poller of Go's runtime comes with the first file that is polled, and stays.
		if err != nil || path == "anon_inode:[eventpoll]" || path == "anon_inode:[eventfd]" {
			continue
		}
		found["file "+fd.Name()+" "+path] = "open"
	}
	return found
}

// children maps the child processes, zombies included, to their names.
func children() map[string]string {
	found := map[string]string{}
	proc, err := os.Open("/proc")
	if err != nil {
		return found
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	me := []byte(" " + strconv.Itoa(os.Getpid()) + " ")
	for _, name := range names {
		if name[0] < '0' || name[0] > '9' {
			continue
		}
		data, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		// PID (COMMAND) STATE PARENT …, of which the command may hold anything.
		end := bytes.LastIndexByte(data, ')')
		if rest := data[end+1:]; len(rest) > 2 && bytes.HasPrefix(rest[2:], me) {
			found["child "+name] = string(data[bytes.IndexByte(data, '('):end+1]) + string(rest[:2])
		}
	}
	return found
}
