// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// inherited are the files below /proc/self that tell what a child process inherits, besides its environment: limits,
// cgroups, security label, what is dumped of it, how exact its timers are, the login that it counts for.
var inherited = []string{
	"limits", "cgroup", "oom_score_adj", "attr/current", "coredump_filter", "timerslack_ns", "personality",
	"loginuid", "sessionid",
}

// inheritedStatus are the lines of /proc/self/status that do.
var inheritedStatus = [][]byte{
	[]byte("Umask"), []byte("Uid"), []byte("Gid"), []byte("Groups"),
	[]byte("CapInh"), []byte("CapPrm"), []byte("CapEff"), []byte("CapBnd"), []byte("CapAmb"),
	[]byte("NoNewPrivs"), []byte("Seccomp"),
	[]byte("Cpus_allowed"), []byte("Mems_allowed"), []byte("SigIgn"), []byte("THP_enabled"),
	[]byte("Speculation_Store_Bypass"), []byte("SpeculationIndirectBranch"),
}

// inheritedStat are the numbers of the fields of /proc/self/stat that do: nice, real-time priority, scheduling policy.
// See proc_pid_stat(5).
var inheritedStat = []int{19, 40, 41}

// inheritedLinks are the root directory, and the namespaces that matter to a shim.
var inheritedLinks = []string{
	"root", "ns/mnt", "ns/cgroup", "ns/ipc", "ns/net", "ns/pid_for_children", "ns/time_for_children", "ns/user",
	"ns/uts",
}

// readSurroundings is the digest of what a child process would inherit from the daemon now. Priorities are a thread's:
// those of the first one are read, which a change for the whole daemon changes too. What cannot be read is
// the same for all.
func readSurroundings() string {
	h := sha256.New()
	add := func(data []byte) { fmt.Fprintf(h, "%d:%s", len(data), data) }
	for _, name := range inherited {
		data, _ := os.ReadFile("/proc/self/" + name)
		add(data)
	}
	for _, name := range inheritedLinks {
		target, _ := os.Readlink("/proc/self/" + name)
		add([]byte(target))
	}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range bytes.Lines(status) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		if slices.ContainsFunc(inheritedStatus, func(s []byte) bool { return bytes.Equal(s, name) }) {
			add(line)
		}
	}
	stat, _ := os.ReadFile("/proc/self/stat")
	for _, field := range statFields(stat, inheritedStat) {
		add(field)
	}
	add(fmt.Append(nil, ioPriority()))
	return hex.EncodeToString(h.Sum(nil))
}

// statFields returns fields of /proc/PID/stat by their numbers, from 3 on; nil for one that is not there. The second,
// the name, may hold spaces and parentheses.
func statFields(stat []byte, numbers []int) [][]byte {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	found := make([][]byte, len(numbers))
	for i, n := range numbers {
		if n-3 < len(fields) {
			found[i] = fields[n-3]
		}
	}
	return found
}

// ioPriority of the daemon's first thread, which nothing in /proc shows; -1 when it cannot be had. See ioprio_get(2).
func ioPriority() int {
	const whoProcess = 1
	prio, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, whoProcess, uintptr(os.Getpid()), 0)
	if errno != 0 {
		return -1
	}
	return int(prio)
}
