// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"bytes"
	"os"
	"strconv"
)

// readMachine reads the memory of the machine. What this kernel does not tell is zero.
func readMachine() Machine {
	info, _ := os.ReadFile("/proc/meminfo")
	pressure, _ := os.ReadFile("/proc/pressure/memory")
	return parseMachine(info, pressure)
}

// parseMachine reads proc_meminfo(5) and the kernel's pressure stall information.
func parseMachine(info, pressure []byte) (m Machine) {
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
			m.Total = kb << 10
		case "MemAvailable:":
			m.Available = kb << 10
		}
	}
	for line := range bytes.Lines(pressure) {
		if some, ok := bytes.CutPrefix(line, []byte("some avg10=")); ok {
			value, _, _ := bytes.Cut(some, []byte(" "))
			m.Pressure, _ = strconv.ParseFloat(string(value), 64) // 0 for what cannot be read
		}
	}
	return m
}
