// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Shim is an installed fake.
type Shim struct {
	// Path is what to use as the runtime: the absolute path of the binary, or of the script.
	Path string
	// Home holds the binary and everything about it.
	Home string

	t      testing.TB
	binary string // the binary, also where Path is a script

	mu        sync.Mutex // serializes Update, and guards what follows
	leftovers bool
}

// Runtime is the runtime name that resolves to the binary where Home is in the search path.
func (sh *Shim) Runtime() string {
	name := strings.TrimPrefix(filepath.Base(sh.Path), shimPrefix)
	return "io.containerd." + strings.ReplaceAll(name, "-", ".")
}

// Update changes the scenario. Execs and RPCs that come later go by it; hangs that it no longer mentions end.
func (sh *Shim) Update(change func(*Scenario)) {
	sh.t.Helper()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	was, err := loadScenario(sh.Home)
	if err != nil {
		sh.t.Fatal(err)
	}
	is, err := loadScenario(sh.Home)
	if err != nil {
		sh.t.Fatal(err)
	}
	change(is)
	if err := storeScenario(sh.Home, is); err != nil {
		sh.t.Fatal(err)
	}
	for _, name := range staleCounters(was, is) {
		_ = os.Remove(filepath.Join(sh.Home, "counters", name))
	}
}

// Replace puts a new copy in the place of the binary, as an upgrade does: another file of the same path.
func (sh *Shim) Replace() {
	sh.t.Helper()
	err := placeBinary(sh.binary+".new", false)
	if err == nil {
		err = os.Rename(sh.binary+".new", sh.binary)
	}
	if err != nil {
		sh.t.Fatal(err)
	}
}

// Trace returns what has happened so far.
func (sh *Shim) Trace() []Entry {
	sh.t.Helper()
	entries, err := readTrace(sh.Home)
	if err != nil {
		sh.t.Fatal(err)
	}
	return entries
}

// Find returns the entries of a kind and action; "" matches every action.
func (sh *Shim) Find(kind, action string) []Entry {
	sh.t.Helper()
	var found []Entry
	for _, e := range sh.Trace() {
		if e.Kind == kind && (action == "" || e.Action == action) {
			found = append(found, e)
		}
	}
	return found
}

// Count is the number of entries that Find finds.
func (sh *Shim) Count(kind, action string) int {
	sh.t.Helper()
	return len(sh.Find(kind, action))
}

// Await waits until Find finds n entries, and returns them.
func (sh *Shim) Await(kind, action string, n int) []Entry {
	sh.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if found := sh.Find(kind, action); len(found) >= n {
			return found
		}
	}
	sh.t.Fatalf("waiting in vain for %d × %s %s; there are %d", n, kind, action, sh.Count(kind, action))
	return nil
}

// Procs returns the living processes of the install, of the given roles or of all.
func (sh *Shim) Procs(roles ...string) []Proc {
	var found []Proc
	for _, p := range findProcs(sh.Home) {
		for _, r := range roles {
			if p.Role == r {
				found = append(found, p)
			}
		}
		if len(roles) == 0 {
			found = append(found, p)
		}
	}
	return found
}

// Daemon returns the living daemon that was started under an id, and fails the test if there is not exactly one.
func (sh *Shim) Daemon(id string) Proc {
	sh.t.Helper()
	var found []Proc
	for _, p := range sh.Procs(RoleDaemon) {
		if p.ID == id {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		sh.t.Fatalf("there are %d daemons of %s: %v", len(found), id, found)
	}
	return found[0]
}

// AwaitNoProcs waits until no process of the given roles, or of any, is left.
func (sh *Shim) AwaitNoProcs(roles ...string) {
	sh.t.Helper()
	if left := sh.awaitNoProcs(patience, roles...); len(left) > 0 {
		sh.t.Fatalf("processes of the fake shim are left: %v", left)
	}
}

func (sh *Shim) awaitNoProcs(limit time.Duration, roles ...string) []Proc {
	deadline := time.Now().Add(limit)
	for {
		left := sh.Procs(roles...)
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// KillAll ends every process of the install.
func (sh *Shim) KillAll() {
	sh.t.Helper()
	// A daemon may be forking: what it made shows in the next round.
	for left := sh.Procs(); len(left) > 0; left = sh.Procs() {
		for _, p := range left {
			if err := p.Kill(); err != nil {
				sh.t.Fatal(err)
			}
		}
	}
}

// Sockets returns the socket files in the directory that is used when no other is named.
func (sh *Shim) Sockets() []string {
	found, _ := filepath.Glob(filepath.Join(sh.Home, "s", "*"))
	return found
}

// AllowLeftovers is for tests that leave processes or sockets on purpose: they are removed without a complaint.
func (sh *Shim) AllowLeftovers() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.leftovers = true
}

func (sh *Shim) cleanup() {
	sh.mu.Lock()
	allowed := sh.leftovers
	sh.mu.Unlock()
	if !allowed {
		wait := settle
		if sh.t.Failed() {
			wait = 0
		}
		for _, p := range sh.awaitNoProcs(wait) {
			sh.t.Errorf("left by the test: %s", p)
		}
	}
	sh.KillAll()
	if !allowed {
		for _, path := range sh.Sockets() {
			sh.t.Errorf("left by the test: socket %s", path)
		}
	}
	if err := os.RemoveAll(sh.Home); err != nil {
		sh.t.Errorf("removing the fake shim: %v", err)
	}
}
