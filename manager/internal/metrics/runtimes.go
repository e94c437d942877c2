// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"path/filepath"
	"strings"
	"sync"
)

// Unknown is the label of a runtime that has no name that resolved.
const Unknown = "unknown"

// runtimeLimit is how many runtimes are told apart besides those that are built in or that the config names.
const runtimeLimit = 5

// runtimeNames are the names that are told apart. A client can put anything in front of a name that resolves
// ("x1.runc.v2" has the binary of "io.containerd.runc.v2"), so one name counts for each binary that is searched for.
type runtimeNames struct {
	mu sync.Mutex
	// +checklocks:mu
	labels map[string]bool
	// +checklocks:mu
	ofShim map[string]string // the label of all names of one binary
	// +checklocks:mu
	free int // labels that clients may still add
}

func newRuntimeNames() *runtimeNames {
	return &runtimeNames{labels: make(map[string]bool), ofShim: make(map[string]string), free: runtimeLimit}
}

var runtimes = newRuntimeNames()

// Keep gives a runtime that is built in or that the config names a label of its own, however many there are. apart
// tells that the config has a binary for this name alone.
func Keep(name string, apart bool) {
	if isPath(name) {
		return
	}
	runtimes.mu.Lock()
	kept := runtimes.labels[name]
	runtimes.labels[name] = true
	if shim := shimOf(name); !apart && runtimes.ofShim[shim] == "" {
		runtimes.ofShim[shim] = name
	}
	runtimes.mu.Unlock()
	if !kept {
		zeroRuntime(name)
	}
}

// Resolved tells that there is a binary of a runtime, which gets a label then, if not too many have one. From that
// moment on its counters are there, so that what comes first is an increase too.
func Resolved(name string) {
	if !isPath(name) && runtimes.add(name) {
		zeroRuntime(name)
	}
}

// add is false where nothing is to be added.
func (r *runtimeNames) add(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	shim := shimOf(name)
	if r.labels[name] || r.ofShim[shim] != "" || r.free == 0 {
		return false
	}
	r.free--
	r.labels[name] = true
	r.ofShim[shim] = name
	return true
}

// Runtime is the label of a runtime: its name, or that under which its binary became known. Unknown are those which have
// not resolved, paths, which are nothing to put into a label, and what comes after runtimeLimit others.
func Runtime(name string) string {
	if isPath(name) {
		return Unknown
	}
	runtimes.mu.Lock()
	defer runtimes.mu.Unlock()
	if runtimes.labels[name] {
		return name
	}
	if label := runtimes.ofShim[shimOf(name)]; label != "" {
		return label
	}
	return Unknown
}

func isPath(name string) bool { return name == "" || filepath.IsAbs(name) }

// shimOf is the end of a runtime's name, which its binary has in its name too.
func shimOf(name string) string {
	parts := strings.Split(name, ".")
	return strings.Join(parts[max(0, len(parts)-2):], ".")
}
