// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

// ShimID is the id that the shim which serves a task was started under: the
// task's own, or a warm shim's.
func (d *Daemon) ShimID(ns, id string) string {
	var record struct{ Warm string }
	if readJSON(filepath.Join(d.Bundle(ns, id), "shimyard.json"), &record) && record.Warm != "" {
		return record.Warm
	}
	return id
}

// Served lists the tasks of a shim, as NAMESPACE/ID, by the id that it was
// started under: those whose bundles name its address.
func (d *Daemon) Served(shim string) []string {
	own := address(d.warmDir(shim))
	bundles, _ := filepath.Glob(d.Bundle("*", "*")) // the pattern is well-formed
	var served []string
	for _, b := range bundles {
		if own != "" && address(b) == own {
			served = append(served, filepath.Base(filepath.Dir(b))+"/"+filepath.Base(b))
		}
	}
	return served
}

// IdleShims are the ids of shims that wait for a task, as their directories
// tell; their processes may be stopped or dead.
func (d *Daemon) IdleShims() []string {
	dirs, _ := filepath.Glob(d.warmDir("_*"))
	var idle []string
	for _, dir := range dirs {
		id := strings.TrimPrefix(filepath.Base(dir), ".")
		if address(dir) != "" && len(d.Served(id)) == 0 {
			idle = append(idle, id)
		}
	}
	return idle
}

func (d *Daemon) warmDir(shim string) string {
	return filepath.Join(d.Dir, "state", taskPlugin, "."+shim)
}

// warmShims lists the directories of shims that serve whoever comes, idle or
// not.
func (d *Daemon) warmShims() []string { return entries("warm shim", d.warmDir("_*"), 0) }

// address is what the bootstrap.json in a directory says; empty without one.
func address(dir string) string {
	var boot struct{ Address string }
	readJSON(filepath.Join(dir, "bootstrap.json"), &boot)
	return boot.Address
}

func readJSON(path string, into any) bool {
	data, err := os.ReadFile(path)
	return err == nil && json.Unmarshal(data, into) == nil
}
