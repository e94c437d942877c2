// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/shimclient"
)

// CleanupPolicy says when the shim's binary is run once more, with `delete`, after a task was deleted.
type CleanupPolicy string

const (
	// CleanupAuto is on-failure for io.containerd.runc.v2 shims that answered with version 3, always for all others.
	CleanupAuto CleanupPolicy = "auto"
	// CleanupAlways runs `delete` after every Delete, as stock containerd does.
	CleanupAlways CleanupPolicy = "always"
	// CleanupOnFailure runs `delete` only when the orderly way failed.
	CleanupOnFailure CleanupPolicy = "on-failure"
)

// CleanupPolicies are all, the default first.
var CleanupPolicies = []CleanupPolicy{CleanupAuto, CleanupAlways, CleanupOnFailure}

// RuntimeConfig is what config says about one runtime, or about a family of them.
type RuntimeConfig struct {
	// Path of the shim's binary; "" searches for it. Not of a family.
	Path string
	// StartProtocol is how `start` is spoken to; "" is auto.
	StartProtocol shimclient.StartProtocol
	// Cleanup is when `delete` runs; "" is auto.
	Cleanup CleanupPolicy
	// Env is added to the environment of its shims, after the one for all.
	Env []string
	// ShimCgroup is the cgroup that its shims are put into where their clients name none; "" leaves them in the
	// daemon's.
	ShimCgroup string
	// Pool is how its shims are kept warm; nil is DefaultPool of the runtime.
	Pool *PoolConfig
	// Deadlines of calls to its shims, laid over those of the Config.
	Deadlines shimclient.Deadlines
}

// PoolConfig says how the shims of one runtime are kept warm. The zero value is: not at all. In a RuntimeConfig a
// negative number is DefaultPool's, which a family does not know before it is asked for one of its runtimes.
type PoolConfig struct {
	// Warm is how many idle shims are started ahead, at most, for containers that differ in nothing a shim gets at its
	// start. 0: each container's shim is started for it and ends with it.
	Warm int
	// Reuse is how often a shim may take another task after one was deleted in good order.
	Reuse int
	// Share is how many tasks may be in one shim process at a time; 1 or less: one.
	Share int
}

// DefaultPool is how the shims of a runtime are kept where config says nothing: those of io.containerd.runc.v2 are kept
// warm.
func DefaultPool(runtime string) PoolConfig {
	p := PoolConfig{Reuse: 100, Share: 1}
	if runtime == RuncV2 {
		p.Warm = 4
	}
	return p
}

// Over is p with what it leaves open taken from the default.
func (p PoolConfig) Over(def PoolConfig) PoolConfig {
	for _, n := range []struct {
		to   *int
		from int
	}{{&p.Warm, def.Warm}, {&p.Reuse, def.Reuse}, {&p.Share, def.Share}} {
		if *n.to < 0 {
			*n.to = n.from
		}
	}
	return p
}

// IsFamily tells whether the name of a RuntimeConfig is a pattern, as of path.Match, for the names of runtimes or for
// the paths of binaries.
func IsFamily(name string) bool { return strings.ContainsAny(name, `*?[\`) }

// runtime is the one RuntimeConfig that counts for a binary: that of the name which Create saw (a path where CRI's
// runtime_path is set), else of the binary's path, else that of the longest pattern for either; of two as long the
// first in the alphabet.
func (c *Config) runtime(b shimclient.Binary) RuntimeConfig {
	for _, name := range []string{b.Runtime, b.Path} {
		if r, ok := c.Runtimes[name]; ok && !IsFamily(name) {
			return r
		}
	}
	longest := ""
	for _, pattern := range slices.Sorted(maps.Keys(c.Runtimes)) {
		if len(pattern) > len(longest) && IsFamily(pattern) &&
			(matches(pattern, b.Runtime) || matches(pattern, b.Path)) {
			longest = pattern
		}
	}
	return c.Runtimes[longest]
}

func matches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

// checkRuntimes returns an InvalidArgument error for a pattern that is malformed, or that names one binary for many
// runtimes.
func (c *Config) checkRuntimes() error {
	for name, r := range c.Runtimes {
		if !IsFamily(name) {
			continue
		}
		if _, err := path.Match(name, ""); err != nil {
			return errors.Wrapf(errdefs.ErrInvalidArgument, "runtime pattern %q: %v", name, err)
		}
		if r.Path != "" {
			return errors.Wrapf(errdefs.ErrInvalidArgument,
				"runtime pattern %q: a family has no path, %q is one binary",
				name, r.Path)
		}
	}
	return nil
}

// deadlines of calls to shims of a binary.
func (c *Config) deadlines(b shimclient.Binary) shimclient.Deadlines {
	own := c.runtime(b).Deadlines
	if len(own) == 0 {
		return c.Deadlines
	}
	return c.Deadlines.With(own)
}

// pool is how shims of a binary are kept warm.
func (c *Config) pool(b shimclient.Binary) PoolConfig {
	if c.WarmLimit <= 0 {
		return PoolConfig{}
	}
	def := DefaultPool(b.Runtime)
	if p := c.runtime(b).Pool; p != nil {
		return p.Over(def)
	}
	return def
}

// paths are the configured binaries by runtime name.
func (c *Config) paths() map[string]string {
	paths := make(map[string]string)
	for name, r := range c.Runtimes {
		if r.Path != "" {
			paths[name] = r.Path
		}
	}
	return paths
}

// deletesAlways tells whether `shim delete` runs even after an orderly delete.
func (c *Config) deletesAlways(b shimclient.Binary, version int) bool {
	switch c.runtime(b).Cleanup {
	case CleanupAlways:
		return true
	case CleanupOnFailure:
		return false
	default:
		return b.Runtime != RuncV2 || version < 3
	}
}
