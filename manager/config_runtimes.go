// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/shimclient"
)

// DefaultPool is how the shims of a runtime are kept where config says nothing: those of io.containerd.runc.v2 are kept
// warm.
func DefaultPool(runtime string) PoolConfig {
	p := PoolConfig{Reuse: 100, Share: 1}
	if runtime == plugins.RuntimeRuncV2 {
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
		return b.Runtime != plugins.RuntimeRuncV2 || version < 3
	}
}

// runcShim is the file name of the shim that takes runc's options whatever the runtime is called.
const runcShim = "containerd-shim-runc-v2"

// startOptions are what a shim of a binary is started with, where its client gives opts: with the cgroup that config
// names for the shim, if the client names none. Only runc's options can say it, and the shim goes there by itself
// before it serves anything; for a shim with options of another kind it is an InvalidArgument error, so that none ends
// up elsewhere unseen.
func (c *Config) startOptions(b shimclient.Binary, opts *anypb.Any) (*anypb.Any, error) {
	cgroup := c.runtime(b).ShimCgroup
	if cgroup == "" {
		return opts, nil
	}
	o := &runcoptions.Options{}
	switch {
	case opts == nil && (b.Runtime == plugins.RuntimeRuncV2 || filepath.Base(b.Path) == runcShim):
	case opts != nil && typeurl.Is(opts, o):
		if err := typeurl.UnmarshalTo(opts, o); err != nil {
			return nil, errors.Wrapf(errdefs.ErrInvalidArgument, "cannot read the runtime's options: %v", err)
		}
	default:
		return nil, errors.Wrapf(errdefs.ErrInvalidArgument,
			"the config has shim_cgroup %q for runtime %s, whose options (%q) cannot say it; remove the key for this runtime",
			cgroup, b.Runtime, opts.GetTypeUrl())
	}
	if o.ShimCgroup != "" {
		return opts, nil
	}
	o.ShimCgroup = cgroup
	value, err := proto.Marshal(o)
	if err != nil {
		return nil, errors.Wrap(err, "cannot write the runtime's options")
	}
	url := opts.GetTypeUrl()
	if url == "" {
		if url, err = runcOptionsURL(); err != nil {
			return nil, err
		}
	}
	return &anypb.Any{TypeUrl: url, Value: value}, nil
}

// runcOptionsURL is how clients name the type of runc's options.
func runcOptionsURL() (string, error) {
	url, err := typeurl.TypeURL(&runcoptions.Options{})
	return url, errors.Wrap(err, "cannot name the type of runc's options")
}
