// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
)

// schedCoreEnv is how shims are told to use core scheduling since config version 4.
const schedCoreEnv = "SCHED_CORE=1"

// migrate moves sched_core of config versions up to 3 to where version 4 has it, the shims' environment. The daemon
// calls it once per version step and per config file, with the sections of that file, so it must find its own earlier
// work harmless. What a section says already stays: env gets one more entry, nothing is overwritten.
func migrate(ctx context.Context, from int, sections map[string]any) error {
	if from >= version.ConfigVersion {
		return nil
	}
	enabled := false
	for _, uri := range []string{taskURI, shimURI} {
		s, ok := sections[uri].(map[string]any)
		if !ok {
			continue
		}
		value, ok := s[schedCoreKey]
		if !ok {
			continue
		}
		delete(s, schedCoreKey)
		on, ok := value.(bool)
		if !ok {
			log.G(ctx).WithField("plugin", uri).WithField("key", schedCoreKey).
				Warnf("not migrating a value that is neither true nor false: %v", value)
		}
		enabled = enabled || on
	}
	if !enabled {
		return nil
	}
	if _, ok := sections[shimURI]; !ok {
		sections[shimURI] = map[string]any{}
	}
	if s, ok := sections[shimURI].(map[string]any); ok {
		addSchedCore(ctx, s)
	}
	return nil
}

// addSchedCore adds the variable to env unless env has it. An env that is not a list is left for the check that stops
// the daemon.
func addSchedCore(ctx context.Context, manager map[string]any) {
	var env []any
	switch e := manager["env"].(type) {
	case nil:
	case []any:
		env = e
	case []string:
		for _, entry := range e {
			env = append(env, entry)
		}
	default:
		return
	}
	name, _, _ := strings.Cut(schedCoreEnv, "=")
	for _, entry := range env {
		s, _ := entry.(string)
		if has, value, _ := strings.Cut(s, "="); has == name {
			if value == "" {
				log.G(ctx).WithField("plugin", shimURI).Warnf(
					"%s is set, but env has %q, which disables core scheduling and stays; remove one of them",
					schedCoreKey, s)
			}
			return
		}
	}
	// A list of `any`, as decoding a file makes it: lists of other types do not merge with those of imported files.
	manager["env"] = append(env[:len(env):len(env)], schedCoreEnv)
}
