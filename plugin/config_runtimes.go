// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager"
	"github.com/shimyard/shimyard/shimclient"
)

// RuntimeConfig is the section of one runtime, or of a family of them.
type RuntimeConfig struct {
	// Path of the shim's binary, absolute. The default is to look for containerd-shim-NAME-VERSION in PATH, then beside
	// the daemon's binary. Not in the section of a path or of a pattern.
	Path string `toml:"path"`
	// StartProtocol is how the shim is told its start parameters: "bootstrap" as containerd 2.4 does it, "legacy" as
	// earlier ones did, or "auto", the default, which looks into the binary.
	StartProtocol string `toml:"start_protocol"`
	// Cleanup is when the shim's binary is run once more after a task was deleted: "always", "on-failure", or "auto",
	// the default, which is "on-failure" for the runc shims that are known to clean up by themselves and "always" for
	// all others.
	Cleanup string `toml:"cleanup"`
	// Env is added to the environment of this runtime's shims, after the one for all, each entry as NAME=value.
	Env []string `toml:"env"`
	// ShimCgroup is the cgroup, as a path from the root of the hierarchy, that the runtime's shims are put into where
	// their clients name none in its options. It must exist, and only shims that take runc's options can be told; a
	// create with others fails. Such shims are not kept warm. The default, "", leaves shims in the daemon's cgroup.
	ShimCgroup string `toml:"shim_cgroup"`
	// Deadlines of the calls to its shims, laid over those of all.
	Deadlines map[string]string `toml:"deadlines"`
	// Warm is how many shims are started ahead of the containers they are for, at most. The default is 4 for
	// io.containerd.runc.v2 and 0, none, for others.
	Warm *int `toml:"warm"`
	// Reuse is how often a shim may take another task after one was deleted without an error. The default is 100.
	Reuse *int `toml:"reuse"`
	// Share is how many tasks may be in one shim process at a time, which needs Warm. The default is 1. More take less
	// memory, and end together if the process does.
	Share *int `toml:"share"`
}

// runtimeName is the form in which clients name a runtime: at least two parts, the last two of which are the shim's
// name and version.
var runtimeName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+$`)

func (c *ShimConfig) runtimes() (map[string]manager.RuntimeConfig, error) {
	out := make(map[string]manager.RuntimeConfig)
	for _, key := range slices.Sorted(maps.Keys(c.Runtimes)) {
		name, err := sectionName(key)
		if err != nil {
			return nil, errors.Wrapf(err, "key runtimes.%q", key)
		}
		if _, twice := out[name]; twice {
			return nil, errors.Errorf("key runtimes.%q: %s has a section already", key, name)
		}
		r, err := c.Runtimes[key].parse(name)
		if err != nil {
			return nil, errors.Wrapf(err, "key runtimes.%q", key)
		}
		out[name] = r
	}
	return out, nil
}

// sectionName is what a section of a runtime, or of a family of them, is for.
func sectionName(key string) (string, error) {
	switch {
	case manager.IsFamily(key):
		if _, err := path.Match(key, ""); err != nil {
			return "", errors.Wrap(err, "not a pattern")
		}
		return key, nil
	case filepath.IsAbs(key):
		return filepath.Clean(key), nil
	case runtimeName.MatchString(key):
		return key, nil
	}
	return "",
		errors.New("neither the name of a runtime, such as io.containerd.runc.v2, nor an absolute path, nor a pattern for either")
}

// parse checks the section of a runtime.
func (r RuntimeConfig) parse(name string) (out manager.RuntimeConfig, err error) {
	if out.Path, err = r.path(name); err != nil {
		return out, err
	}
	if out.StartProtocol, err = shimclient.Choice("start_protocol", r.StartProtocol,
		shimclient.StartProtocols...); err != nil {
		return out, err
	}
	if out.Cleanup, err = shimclient.Choice("cleanup", r.Cleanup, manager.CleanupPolicies...); err != nil {
		return out, err
	}
	if err := checkEnv(r.Env); err != nil {
		return out, err
	}
	out.Env = r.Env
	if out.ShimCgroup, err = r.shimCgroup(); err != nil {
		return out, err
	}
	if out.Deadlines, err = parseDeadlines(r.Deadlines); err != nil {
		return out, err
	}
	out.Pool, err = r.pool(name)
	return out, err
}

// path is that of the binary. A section that is named by a path, or that is for many, has none.
func (r RuntimeConfig) path(name string) (string, error) {
	switch {
	case r.Path == "":
		return "", nil
	case manager.IsFamily(name):
		return "",
			errors.Errorf("path %q: the section is for many runtimes; name the binary in a section for one of them",
				r.Path)
	case filepath.IsAbs(name):
		return "", errors.Errorf("path %q: the section is for one binary already, remove the key", r.Path)
	case !filepath.IsAbs(r.Path) || strings.ContainsRune(r.Path, 0):
		return "", errors.Errorf("path %q: not an absolute path", r.Path)
	}
	return filepath.Clean(r.Path), nil
}

func (r RuntimeConfig) shimCgroup() (string, error) {
	switch {
	case r.ShimCgroup == "":
		return "", nil
	case !path.IsAbs(r.ShimCgroup) || path.Clean(r.ShimCgroup) != r.ShimCgroup || r.ShimCgroup == "/":
		return "", errors.Errorf("shim_cgroup %q: not a path below the root of the hierarchy, such as \"/shims\"",
			r.ShimCgroup)
	case strings.ContainsRune(r.ShimCgroup, 0):
		return "", errors.Errorf("shim_cgroup %q: has a NUL byte in it", r.ShimCgroup)
	}
	return r.ShimCgroup, nil
}

// pool is the runtime's default with what the section says laid over it. What a family leaves open its runtimes decide.
func (r RuntimeConfig) pool(name string) (*manager.PoolConfig, error) {
	p := manager.PoolConfig{Warm: -1, Reuse: -1, Share: -1}
	if !manager.IsFamily(name) {
		p = manager.DefaultPool(name)
	}
	for _, k := range []struct {
		key  string
		from *int
		to   *int
		min  int
	}{{"warm", r.Warm, &p.Warm, 0}, {"reuse", r.Reuse, &p.Reuse, 0}, {"share", r.Share, &p.Share, 1}} {
		if k.from == nil {
			continue
		}
		if *k.from < k.min {
			return nil, errors.Errorf("%s %d: want %d or more", k.key, *k.from, k.min)
		}
		*k.to = *k.from
	}
	return &p, nil
}

// checkSharing refuses tasks in one process where core scheduling is to keep them apart: the process hands its core on
// to them.
func checkSharing(c *manager.Config) error {
	for _, name := range slices.Sorted(maps.Keys(c.Runtimes)) {
		p := c.Runtimes[name].Pool
		switch {
		case p == nil || p.Share <= 1:
		case p.Warm <= 0:
			return errors.Errorf("key runtimes.%q: share %d needs warm shims, set warm to 1 or more", name, p.Share)
		case schedulesCores(slices.Concat(os.Environ(), c.Env, c.Runtimes[name].Env)):
			return errors.Errorf("key runtimes.%q: share %d would let containers share a core that SCHED_CORE is to keep apart, set share to 1",
				name, p.Share)
		}
	}
	return nil
}
