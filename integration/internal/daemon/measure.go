// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/pkg/errors"
)

// Profile is a CPU profile of the daemon over the next seconds, at most half of
// Patience.
func (d *Daemon) Profile(seconds int) ([]byte, error) {
	profile, err := d.pprof(fmt.Sprintf("profile?seconds=%d", seconds))
	return []byte(profile), err
}

// LiveHeap is how many bytes of the daemon's heap are in use, after it was made
// to collect its garbage.
func (d *Daemon) LiveHeap() (uint64, error) {
	profile, err := d.pprof("heap?gc=1&debug=1")
	if err != nil {
		return 0, err
	}
	m := heapAlloc.FindStringSubmatch(profile)
	if m == nil {
		return 0, errors.New("the heap profile has no HeapAlloc")
	}
	n, err := strconv.ParseUint(m[1], 10, 64)
	return n, errors.Wrap(err, "cannot read the heap profile")
}

var heapAlloc = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)`)

// Connections counts the established connections to the sockets of the
// daemon's shims, from any process.
func (d *Daemon) Connections() (int, error) {
	data, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return 0, errors.Wrap(err, "cannot list unix sockets")
	}
	count := 0
	for _, line := range strings.Split(string(data), "\n") {
		// Num RefCount Protocol Flags Type St Inode Path; the accepted end has the path, 03 is connected.
		if f := strings.Fields(line); len(f) == 8 && f[5] == "03" && within(f[7], d.SocketDir()) {
			count++
		}
	}
	return count, nil
}

// Memory is what a process uses, in bytes.
type Memory struct{ RSS, PSS uint64 }

// MemoryOf a process.
func MemoryOf(pid int) (Memory, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return Memory{}, errors.Wrap(err, "cannot tell a process's memory")
	}
	var m Memory
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseUint(f[1], 10, 64) // lines of another form are not those wanted
		switch f[0] {
		case "Rss:":
			m.RSS = n << 10
		case "Pss:":
			m.PSS = n << 10
		}
	}
	return m, nil
}
