// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"path/filepath"
	"reflect"
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
	// SocketDir is an absolute path of at most 42 bytes (38 on darwin and freebsd), under which shims put their
	// sockets; a socket's own name takes 65 more, and the address of a unix socket has room for little over 100. The
	// default is /run/containerd/s for root; for others it is the first that is theirs of /run/containerd/s,
	// $XDG_RUNTIME_DIR/containerd/s, /run/UID/containerd/s and /tmp/containerd-s-UID. A stock key.
	SocketDir string `toml:"socket_dir"`
	// Deadlines of the calls to a shim, as duration strings by method of the Task API ("State", "Kill") and of the
	// Sandbox API ("SandboxStatus"). "0s" leaves a method with the caller's own deadline only, as is the case for the
	// methods that are not in the defaults; it is refused for those that are also called where there is no caller. Wait
	// and WaitSandbox have none.
	Deadlines map[string]string `toml:"deadlines"`
	// EscalateAfter is how long a shim may leave calls unanswered before it is ended, and its containers with it, as a
	// duration string. "0s", the default, is for ever: a shim that stalls costs no container.
	EscalateAfter string `toml:"escalate_after"`
	// WarmLimit is how many shims may wait for a task at a time, of all runtimes and namespaces. 0: none.
	WarmLimit int `toml:"warm_limit"`
	// WarmIdle is for how long a shim waits unused, as a duration string.
	WarmIdle string `toml:"warm_idle"`
	// WarmMemoryPercent is how much of the machine's memory waiting shims may hold together. 0: that is not looked at.
	WarmMemoryPercent int `toml:"warm_memory_percent"`
	// WarmAvailablePercent is how much of the machine's memory must be available for any to be kept. 0: that is not
	// looked at.
	WarmAvailablePercent int `toml:"warm_available_percent"`
	// WarmPressurePercent is from which share of the last ten seconds on, in which processes waited for memory (PSI),
	// none is kept. 0: that is not looked at.
	WarmPressurePercent int `toml:"warm_pressure_percent"`
	// AllowedRuntimes are patterns as in shells, of which one must match the name of a runtime, or the path of its shim
	// binary, for a client to have it started or asked for its info. A star stands for no slash. The default, none,
	// allows all.
	AllowedRuntimes []string `toml:"allowed_runtimes"`
	// BinaryCheck is what is done about a shim binary that others than root and the daemon's user could replace, since
	// they may write to it or to a directory on the way to it, also by a link: "off", "warn", the default, or "refuse".
	// It is looked at right before each start. The group of root counts as root, unless an access list (ACL) says who
	// else may write. What runs already is cleaned up by its own binary in any case, and by another of the same name,
	// where that is gone, only if it passes.
	BinaryCheck string `toml:"binary_check"`
	// Runtimes has a section for each runtime, or family of them, that is to be treated otherwise. A section is named
	// by the runtime's name ("io.containerd.runc.v2"), or by the absolute path of its binary, where clients name that
	// instead (CRI's runtime_path), or by a pattern as in shells for either ("io.containerd.kata.*"), in which a star
	// stands for no slash. One section counts: that of the exact name, else of the exact path, else of the longest
	// pattern.
	Runtimes map[string]RuntimeConfig `toml:"runtimes"`
}

// TaskConfig is the section [plugins.'io.containerd.runtime.v2.task'].
type TaskConfig struct {
	// Platforms that containers can be run for. A stock key; the default is the daemon's own (and on Windows also
	// linux/amd64).
	Platforms []string `toml:"platforms"`
}

func defaultShimConfig() ShimConfig {
	deadlines := make(map[string]string)
	for method, d := range shimclient.DefaultDeadlines() {
		deadlines[method] = d.String()
	}
	return ShimConfig{Env: []string{}, Deadlines: deadlines, EscalateAfter: "0s", WarmLimit: 32, WarmIdle: "1m",
		WarmMemoryPercent: 1, WarmAvailablePercent: 10, WarmPressurePercent: 10,
		AllowedRuntimes: []string{}, BinaryCheck: string(shimclient.CheckWarn), Runtimes: map[string]RuntimeConfig{}}
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
	if to.BinaryCheck, err = shimclient.Choice("binary check", c.BinaryCheck, shimclient.BinaryChecks...); err != nil {
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
		return 0, 0,
			errors.Errorf("key warm_idle: %q is not a duration such as \"1m\"; to have no warm shims set warm_limit to 0", c.WarmIdle)
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

// schedulesCores tells whether shims with this environment, of which the last entry of a name counts, make core
// scheduling groups: runc's do for any value but an empty one.
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
			return errors.Errorf("key env: entry %d, %q, has a NUL byte in it, which no environment can carry", i,
				entry)
		}
	}
	return nil
}

func (c *ShimConfig) socketDir() (string, error) {
	if c.SocketDir == "" {
		if dir := defaultSocketDir(); dir != "" {
			return dir, nil
		}
		return "",
			errors.New("key socket_dir: none is set and none of the default directories can be used by this user, set one")
	}
	dir := filepath.Clean(c.SocketDir)
	switch {
	case !filepath.IsAbs(dir):
		return "", errors.Errorf("key socket_dir: %q is not an absolute path", c.SocketDir)
	case strings.ContainsRune(dir, 0):
		return "", errors.Errorf("key socket_dir: %q has a NUL byte in it", c.SocketDir)
	case len(dir) > maxSocketDirLen:
		return "",
			errors.Errorf("key socket_dir: %q has %d bytes, and a socket in it only fits into an address if it has at most %d",
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
		return 0, errors.Errorf("key escalate_after: %q is not a duration such as \"10m\"; \"0s\" is for ever",
			c.EscalateAfter)
	}
	return d, nil
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
