// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager"
	"github.com/shimyard/shimyard/shimclient"
)

// ShimConfig is the section [plugins.'io.containerd.shim.v1.manager'].
type ShimConfig struct {
	// Env is added to the environment of every shim, each entry as NAME=value. A stock key.
	Env []string `toml:"env"`
	// SocketDir is an absolute path of at most 42 bytes (38 on darwin and freebsd), under which shims put their sockets; a socket's own
	// name takes 65 more, and the address of a unix socket has room for little over 100. The default is /run/containerd/s for root;
	// for others it is the first that is theirs of /run/containerd/s, $XDG_RUNTIME_DIR/containerd/s, /run/UID/containerd/s and
	// /tmp/containerd-s-UID. A stock key.
	SocketDir string `toml:"socket_dir"`
	// Deadlines of the calls to a shim, as duration strings by method of the Task API ("State", "Kill") and of the Sandbox API
	// ("SandboxStatus"). "0s" leaves a method with the caller's own deadline only, as is the case for the methods that are not in the
	// defaults; it is refused for those that are also called where there is no caller. Wait and WaitSandbox have none.
	Deadlines map[string]string `toml:"deadlines"`
	// EscalateAfter is how long a shim may leave calls unanswered before it is ended, and its containers with it, as a duration string.
	// "0s", the default, is for ever: a shim that stalls costs nobody a container.
	EscalateAfter string `toml:"escalate_after"`
	// WarmLimit is how many shims may wait for a task at a time, of all runtimes and namespaces. 0: none.
	WarmLimit int `toml:"warm_limit"`
	// WarmIdle is for how long one waits that nobody wants, as a duration string.
	WarmIdle string `toml:"warm_idle"`
	// WarmMemoryPercent is how much of the machine's memory waiting shims may hold. None is kept while less than WarmAvailablePercent of it is
	// available, or while processes wait for memory for WarmPressurePercent of the time or more. 0 each: that is not looked at.
	WarmMemoryPercent    int `toml:"warm_memory_percent"`
	WarmAvailablePercent int `toml:"warm_available_percent"`
	WarmPressurePercent  int `toml:"warm_pressure_percent"`
	// AllowedRuntimes are patterns as in shells, of which one must match the name of a runtime, or the path of its shim binary, for a client to
	// have it started or asked for its info. A star stands for no slash. The default, none, allows all.
	AllowedRuntimes []string `toml:"allowed_runtimes"`
	// BinaryCheck is what is done about a shim binary that others than root and the daemon's user could replace, since they may write to it or to
	// a directory on the way to it: "off", "warn", the default, or "refuse".
	BinaryCheck string `toml:"binary_check"`
	// Runtimes by name ("io.containerd.runc.v2") or, where clients name a binary instead (CRI's runtime_path), by its absolute path.
	Runtimes map[string]RuntimeConfig `toml:"runtimes"`
}

// RuntimeConfig is the section of one runtime.
type RuntimeConfig struct {
	// Path of the shim's binary, absolute. The default is to look for containerd-shim-NAME-VERSION.
	Path string `toml:"path"`
	// StartProtocol is how the shim is told its start parameters: "bootstrap" as containerd 2.4 does it, "legacy" as earlier ones did, or
	// "auto", the default, which looks into the binary.
	StartProtocol string `toml:"start_protocol"`
	// Cleanup is when the shim's binary is run once more after a task was deleted: "always", "on-failure", or "auto", the default,
	// which is "on-failure" for the runc shims that are known to clean up by themselves and "always" for all others.
	Cleanup string `toml:"cleanup"`
	// Env is added to the environment of this runtime's shims, after the one for all, each entry as NAME=value.
	Env []string `toml:"env"`
	// Deadlines of the calls to its shims, laid over those of all.
	Deadlines map[string]string `toml:"deadlines"`
	// Warm is how many shims are started ahead of the containers they are for, at most. The default is 4 for io.containerd.runc.v2 and 0,
	// none, for others.
	Warm *int `toml:"warm"`
	// Reuse is how often a shim may take another task after one was deleted without an error. The default is 100.
	Reuse *int `toml:"reuse"`
	// Share is how many tasks may be in one shim process at a time, which needs Warm. The default is 1. More take less memory, and end
	// together if the process does.
	Share *int `toml:"share"`
}

// TaskConfig is the section [plugins.'io.containerd.runtime.v2.task'].
type TaskConfig struct {
	// Platforms that containers can be run for. A stock key; the default is the daemon's own (and on Windows also linux/amd64).
	Platforms []string `toml:"platforms"`
}

func defaultShimConfig() ShimConfig {
	deadlines := make(map[string]string)
	for method, d := range shimclient.DefaultDeadlines() {
		deadlines[method] = d.String()
	}
	return ShimConfig{Env: []string{}, Deadlines: deadlines, EscalateAfter: "0s", WarmLimit: 32, WarmIdle: "1m",
		WarmMemoryPercent: 1, WarmAvailablePercent: 10, WarmPressurePercent: 10, AllowedRuntimes: []string{}, BinaryCheck: string(shimclient.CheckWarn), Runtimes: map[string]RuntimeConfig{}}
}

func defaultTaskConfig() TaskConfig {
	return TaskConfig{Platforms: defaultPlatforms()}
}

// apply checks the section and puts what it says into a manager's config.
func (c *ShimConfig) apply(to *manager.Config) (err error) {
	if err := checkEnv(c.Env); err != nil {
		return err
	}
	to.Env = c.Env
	if to.SocketDir, err = c.socketDir(); err != nil {
		return err
	}
	if to.Deadlines, err = parseDeadlines(c.Deadlines); err != nil {
		return err
	}
	to.Deadlines = shimclient.DefaultDeadlines().With(to.Deadlines)
	if to.EscalateAfter, err = c.escalateAfter(); err != nil {
		return err
	}
	if to.WarmLimit, to.WarmIdle, err = c.warm(); err != nil {
		return err
	}
	if to.WarmMemory, err = c.warmMemory(); err != nil {
		return err
	}
	if to.BinaryCheck, err = shimclient.ParseBinaryCheck(c.BinaryCheck); err != nil {
		return errors.Wrap(err, "key binary_check")
	}
	if to.AllowedRuntimes, err = c.allowedRuntimes(); err != nil {
		return err
	}
	if to.Runtimes, err = c.runtimes(); err != nil {
		return err
	}
	return checkSharing(to)
}

func (c *ShimConfig) allowedRuntimes() ([]string, error) {
	if len(c.AllowedRuntimes) == 0 {
		return nil, nil
	}
	_, err := shimclient.NewPolicy(c.AllowedRuntimes, shimclient.CheckOff)
	return c.AllowedRuntimes, errors.Wrap(err, "key allowed_runtimes")
}

func (c *ShimConfig) warm() (limit int, idle time.Duration, err error) {
	if c.WarmLimit < 0 {
		return 0, 0, errors.Errorf("key warm_limit: %d is negative; 0 is for no warm shims", c.WarmLimit)
	}
	idle, err = time.ParseDuration(c.WarmIdle)
	if err != nil || idle <= 0 {
		return 0, 0, errors.Errorf("key warm_idle: %q is not a duration such as \"1m\"; to have no warm shims set warm_limit to 0", c.WarmIdle)
	}
	return c.WarmLimit, idle, nil
}

func (c *ShimConfig) warmMemory() (rule manager.MemoryRule, err error) {
	for _, k := range []struct {
		key  string
		from int
		to   *int
	}{
		{"warm_memory_percent", c.WarmMemoryPercent, &rule.Share},
		{"warm_available_percent", c.WarmAvailablePercent, &rule.Available},
		{"warm_pressure_percent", c.WarmPressurePercent, &rule.Pressure},
	} {
		if k.from < 0 || k.from > 100 {
			return rule, errors.Errorf("key %s: %d: want 0, which is for no such rule, to 100", k.key, k.from)
		}
		*k.to = k.from
	}
	return rule, nil
}

// checkSharing refuses tasks in one process where core scheduling is to keep them apart: the process hands its core on to them.
func checkSharing(c *manager.Config) error {
	for _, name := range slices.Sorted(maps.Keys(c.Runtimes)) {
		p := c.Runtimes[name].Pool
		switch {
		case p == nil || p.Share <= 1:
		case p.Warm <= 0:
			return errors.Errorf("key runtimes.%q: share %d needs warm shims, set warm to 1 or more", name, p.Share)
		case schedulesCores(slices.Concat(os.Environ(), c.Env, c.Runtimes[name].Env)):
			return errors.Errorf("key runtimes.%q: share %d would let containers share a core that SCHED_CORE is to keep apart, set share to 1", name, p.Share)
		}
	}
	return nil
}

// schedulesCores tells whether shims with this environment, of which the last entry of a name counts, make core scheduling groups: runc's do for
// any value but an empty one.
func schedulesCores(env []string) bool {
	value := ""
	for _, entry := range env {
		if v, ok := strings.CutPrefix(entry, "SCHED_CORE="); ok {
			value = v
		}
	}
	return value != ""
}

func checkEnv(env []string) error {
	for i, entry := range env {
		name, _, ok := strings.Cut(entry, "=")
		switch {
		case !ok || name == "":
			return errors.Errorf("key env: entry %d, %q, is not of the form NAME=value", i, entry)
		case strings.ContainsRune(entry, 0):
			return errors.Errorf("key env: entry %d, %q, has a NUL byte in it, which no environment can carry", i, entry)
		}
	}
	return nil
}

func (c *ShimConfig) socketDir() (string, error) {
	if c.SocketDir == "" {
		if dir := defaultSocketDir(); dir != "" {
			return dir, nil
		}
		return "", errors.New("key socket_dir: none is set and none of the default directories can be used by this user, set one")
	}
	dir := filepath.Clean(c.SocketDir)
	switch {
	case !filepath.IsAbs(dir):
		return "", errors.Errorf("key socket_dir: %q is not an absolute path", c.SocketDir)
	case strings.ContainsRune(dir, 0):
		return "", errors.Errorf("key socket_dir: %q has a NUL byte in it", c.SocketDir)
	case len(dir) > maxSocketDirLen:
		return "", errors.Errorf("key socket_dir: %q has %d bytes, and a socket in it only fits into an address if it has at most %d",
			c.SocketDir, len(dir), maxSocketDirLen)
	}
	return dir, nil
}

func (c *ShimConfig) escalateAfter() (time.Duration, error) {
	if c.EscalateAfter == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(c.EscalateAfter)
	if err != nil || d < 0 {
		return 0, errors.Errorf("key escalate_after: %q is not a duration such as \"10m\"; \"0s\" is for ever", c.EscalateAfter)
	}
	return d, nil
}

// runtimeName is the form in which clients name a runtime: at least two parts, the last two of which are the shim's name and version.
var runtimeName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+$`)

func (c *ShimConfig) runtimes() (map[string]manager.RuntimeConfig, error) {
	out := make(map[string]manager.RuntimeConfig)
	for _, key := range slices.Sorted(maps.Keys(c.Runtimes)) {
		name := key
		if filepath.IsAbs(key) {
			name = filepath.Clean(key)
		} else if !runtimeName.MatchString(key) {
			return nil, errors.Errorf("key runtimes.%q: neither the name of a runtime, such as io.containerd.runc.v2, nor an absolute path", key)
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

// parse checks one runtime's section; named by path it has no path of its own.
func (r RuntimeConfig) parse(name string) (out manager.RuntimeConfig, err error) {
	switch {
	case r.Path == "":
	case filepath.IsAbs(name):
		return out, errors.Errorf("path %q: the section is for one binary already, remove the key", r.Path)
	case !filepath.IsAbs(r.Path) || strings.ContainsRune(r.Path, 0):
		return out, errors.Errorf("path %q: not an absolute path", r.Path)
	default:
		out.Path = filepath.Clean(r.Path)
	}
	if out.StartProtocol, err = shimclient.ParseStartProtocol(r.StartProtocol); err != nil {
		return out, err
	}
	if out.Cleanup, err = manager.ParseCleanupPolicy(r.Cleanup); err != nil {
		return out, err
	}
	if err := checkEnv(r.Env); err != nil {
		return out, err
	}
	out.Env = r.Env
	if out.Deadlines, err = parseDeadlines(r.Deadlines); err != nil {
		return out, err
	}
	out.Pool, err = r.pool(name)
	return out, err
}

// pool is the runtime's default with what the section says laid over it.
func (r RuntimeConfig) pool(name string) (*manager.PoolConfig, error) {
	p := manager.DefaultPool(name)
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

func (c *TaskConfig) platforms() ([]v1.Platform, error) {
	ps, err := platforms.ParseAll(c.Platforms)
	return ps, errors.Wrap(err, "key platforms")
}

// tomlKeys are the keys of a config struct.
func tomlKeys[T any]() []string {
	var keys []string
	for f := range reflect.TypeFor[T]().Fields() {
		keys = append(keys, f.Tag.Get("toml"))
	}
	return keys
}
