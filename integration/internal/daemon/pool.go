// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"os"
	"regexp"
	"strings"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/internal/tools"
)

// PoolEnv names the mode in which the pool of warm shims is tested: "" as it
// is by default, "off" without it, "share8" with up to 8 tasks in a process.
const PoolEnv = "POOL"

var poolModes = map[string][]string{
	"":       nil,
	"off":    {"warm = 0", "share = 1"},
	"share8": {"share = 8"},
}

const poolSection = "[plugins.'io.containerd.shim.v1.manager'.runtimes.'io.containerd.runc.v2']"

var (
	poolHeader  = regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(poolSection) + `.*\n?`)
	nextSection = regexp.MustCompile(`(?m)^\s*\[`)
	aboutPool   = regexp.MustCompile(`(?m)^\s*(warm|share)\s*=`)
)

// withPool adds to the end of a config file of a binary what the mode in the
// environment wants. Stock containerd knows nothing of it. A section that the
// file has for the runtime already is added to, unless it speaks of the pool
// itself: then the test is about that, in whatever mode.
func withPool(config, binary string) (string, error) {
	mode := os.Getenv(PoolEnv)
	lines, ok := poolModes[mode]
	if !ok {
		return "", errors.Errorf("%s=%s: unknown mode, want off, share8 or nothing", PoolEnv, mode)
	}
	if len(lines) == 0 || tools.IsStock(binary) {
		return config, nil
	}
	add := strings.Join(lines, "\n") + "\n"
	at := poolHeader.FindStringIndex(config)
	if at == nil {
		return config + "\n" + poolSection + "\n" + add, nil
	}
	head, section := config[:at[1]], config[at[1]:]
	if end := nextSection.FindStringIndex(section); end != nil {
		section = section[:end[0]]
	}
	if aboutPool.MatchString(section) {
		return config, nil
	}
	return strings.TrimSuffix(head, "\n") + "\n" + add + config[at[1]:], nil
}
