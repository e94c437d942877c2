// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Command runc stands before the real runc, which is beside it as runc.real, in boxes on machines where root may not
// lower a process's OOM score: there no container of a pod would start. It raises what a bundle asks for to what is
// possible, and leaves all else as it is.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "runc:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if file := specOf(args); file != "" {
		if err := raise(file); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(filepath.Join(filepath.Dir(self), "runc.real"), args, os.Environ())
}

// specOf is the file that says how the process is to be: the config of a bundle, or what exec is given; empty for
// other commands.
func specOf(args []string) string {
	starts, bundle, process := false, "", ""
	for i, a := range args {
		name, value, inline := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !inline && i+1 < len(args) {
			value = args[i+1]
		}
		switch {
		case a == "create" || a == "run" || a == "restore":
			starts = true
		case !strings.HasPrefix(a, "-"):
		case name == "bundle" || name == "b":
			bundle = value
		case name == "process" || name == "p":
			process = value
		}
	}
	switch {
	case starts && bundle != "":
		return filepath.Join(bundle, "config.json")
	case starts:
		return "config.json"
	default:
		return process
	}
}

// raise rewrites the file if it asks for a lower OOM score than this process has.
func raise(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil // runc tells
	}
	var spec map[string]json.RawMessage
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil // runc tells
	}
	process := spec
	if raw, ok := spec["process"]; ok {
		process = map[string]json.RawMessage{}
		if err := json.Unmarshal(raw, &process); err != nil {
			return nil // runc tells
		}
	}
	own, err := ownScore()
	if err != nil {
		return err
	}
	var score int
	if err := json.Unmarshal(process["oomScoreAdj"], &score); err != nil || score >= own {
		return nil // it asks for none
	}
	process["oomScoreAdj"] = json.RawMessage(strconv.Itoa(own))
	if _, ok := spec["process"]; ok {
		if spec["process"], err = json.Marshal(process); err != nil {
			return err
		}
	}
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}

func ownScore() (int, error) {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}
