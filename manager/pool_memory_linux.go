// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"bytes"
	"os"
	"strconv"
)

// readMachineMemory reads it. What this kernel does not tell is zero.
func readMachineMemory() machineMemory {
	info, _ := os.ReadFile("/proc/meminfo")
	pressure, _ := os.ReadFile("/proc/pressure/memory")
	return parseMachineMemory(info, pressure)
}

// parseMachineMemory reads proc_meminfo(5) and the kernel's pressure stall information.
func parseMachineMemory(info, pressure []byte) (m machineMemory) {
	for line := range bytes.Lines(info) {
		f := bytes.Fields(line)
		if len(f) != 3 || string(f[2]) != "kB" {
			continue
		}
		kb, err := strconv.ParseUint(string(f[1]), 10, 54)
		if err != nil {
			continue
		}
		switch string(f[0]) {
		case "MemTotal:":
			m.total = kb << 10
		case "MemAvailable:":
			m.available = kb << 10
		}
	}
	for line := range bytes.Lines(pressure) {
		if some, ok := bytes.CutPrefix(line, []byte("some avg10=")); ok {
			value, _, _ := bytes.Cut(some, []byte(" "))
			m.pressure, _ = strconv.ParseFloat(string(value), 64) // 0 for what cannot be read
		}
	}
	return m
}
