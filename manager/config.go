// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/warm"
	"github.com/shimyard/shimyard/shimclient"
)

// Names of the timeouts in containerd's [timeouts] section, as stock containerd calls them. They are read at each use.
const (
	// TimeoutLoad bounds how long a call waits for the connection to a shim, and how long a shim that can only be
	// judged by its connection (vsock, not launched by us) may stay unreachable before it counts as dead.
	TimeoutLoad = shimproc.TimeoutLoad
	// TimeoutCleanup bounds one attempt to clean up, and how long a create waits for an id that is still being cleaned.
	TimeoutCleanup = shimproc.TimeoutCleanup
	// TimeoutShutdown bounds the Shutdown call and the wait for the process to go after it.
	TimeoutShutdown = shimproc.TimeoutShutdown
)

// RuncV2 is the runtime whose shims are vouched for: they clean up by themselves when their Delete succeeds.
const RuncV2 = plugins.RuntimeRuncV2

// MemoryRule says what idle shims may take of the machine's memory, each in percent; 0: that condition is not looked
// at.
type MemoryRule struct {
	// Share of the memory is how much idle shims may hold together.
	Share int
	// Available of the memory, by the kernel's estimate (MemAvailable), must be left for any idle shim to be kept.
	Available int
	// Pressure is the share of the last ten seconds, in which some process waited for memory (PSI, some avg10), from
	// which on none is kept.
	Pressure int
}

// Dirs are the directories of one kind of instances.
type Dirs struct {
	// Root outlives a reboot, State does not.
	Root, State string
}

func (d Dirs) layout() bundle.Layout { return bundle.Layout{State: d.State, Root: d.Root} }

// Config of a ShimManager.
type Config struct {
	// Tasks and Boxes are where the bundles of tasks and of sandboxes are: the directories of the plugins
	// io.containerd.runtime.v2.task and io.containerd.sandbox.controller.v1.shim. The manager must know both before it
	// can judge any shim, since a task may be served by a sandbox's.
	Tasks, Boxes Dirs
	// GRPCAddress and TTRPCAddress are the daemon's own sockets, handed to shims.
	GRPCAddress, TTRPCAddress string
	// SocketDir is where shims are asked to put their sockets.
	SocketDir string
	// Env is added to the environment of every shim exec.
	Env []string
	// Events is the daemon's exchange: followed for exits that shims report, spoken to for shims that died.
	Events *exchange.Exchange
	// Sandboxes is the metadata store of sandboxes.
	Sandboxes sandbox.Store
	// Containers is the metadata store of containers: it names the runtime of a bundle that does not.
	Containers containers.Store
	// Deadlines per method of the Task and the Sandbox API; nil is shimclient.DefaultDeadlines(). Those of
	// shimclient.OwnCalls must be set.
	Deadlines shimclient.Deadlines
	// EscalateAfter is how long a shim may be unresponsive before it is ended, its containers with it; 0 is for ever.
	EscalateAfter time.Duration
	// WarmLimit is how many idle shims there may be at a time, of all runtimes and namespaces; 0: none are kept.
	// WarmIdle is for how long one is kept that no create wants.
	WarmLimit int
	WarmIdle  time.Duration
	// WarmMemory is what idle shims may take of the machine's memory; the zero value is: as many as there may be.
	WarmMemory MemoryRule
	// machine reads the machine's memory; nil asks the kernel. Another in tests.
	machine func() warm.Machine
	// AllowedRuntimes are patterns, of which one must match the name of a runtime that is started, or the path of its
	// binary; none allows all. BinaryCheck is what is done about a shim binary that others could replace; "" is to
	// warn. See shimclient.Policy.
	AllowedRuntimes []string
	BinaryCheck     shimclient.BinaryCheck
	// Runtimes by name, by absolute path of the binary, or by a pattern for either (IsFamily).
	Runtimes map[string]RuntimeConfig
}

// checkDeadlines returns an InvalidArgument error for calls that nothing would bound.
func (c *Config) checkDeadlines() error {
	if err := c.Deadlines.Check(); err != nil {
		return err
	}
	for name, r := range c.Runtimes {
		if err := c.Deadlines.With(r.Deadlines).Check(); err != nil {
			return errors.Wrapf(err, "runtime %s", name)
		}
	}
	return nil
}

func newPolicy(c *Config) (*shimclient.Policy, error) {
	check, err := shimclient.Choice("binary check", string(c.BinaryCheck), shimclient.BinaryChecks...)
	if err != nil {
		return nil, err
	}
	return shimclient.NewPolicy(c.AllowedRuntimes, check)
}

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

// keepRuntimeNames has what is built in and what the config names told apart in the metrics, whatever clients make up.
func (c *Config) keepRuntimeNames() {
	metrics.Keep(plugins.RuntimeRuncV2, c.Runtimes[plugins.RuntimeRuncV2].Path != "")
	for _, name := range slices.Sorted(maps.Keys(c.Runtimes)) {
		if !IsFamily(name) {
			metrics.Keep(name, c.Runtimes[name].Path != "")
		}
	}
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
