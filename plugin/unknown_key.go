// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/log"
)

// schedCoreKey was a key of the task section up to config version 3. See migrate.
const schedCoreKey = "sched_core"

// warnUnknown logs each unknown key of a section with what the user can do about it.
func warnUnknown(ctx context.Context, uri string, unknown [][]string) {
	for _, path := range unknown {
		log.G(ctx).WithField("plugin", uri).WithField("key", strings.Join(path, ".")).
			Warnf("ignoring an unknown key in the config: %s", hint(uri, path))
	}
}

// hint says what to do about an unknown key, given as its path from the section down.
func hint(uri string, path []string) string {
	key := path[len(path)-1]
	known := knownKeys(uri, path)
	if len(path) == 1 {
		if key == schedCoreKey {
			return fmt.Sprintf("%s has been replaced: to enable core scheduling add %q to env in [plugins.'%s'], then remove the key",
				schedCoreKey, schedCoreEnv, shimURI)
		}
		for _, other := range []string{shimURI, taskURI} {
			if other != uri && slices.Contains(sectionKeys[other], key) {
				return fmt.Sprintf("it belongs in [plugins.'%s']", other)
			}
		}
	}
	if near := nearest(key, known); near != "" {
		return fmt.Sprintf("did you mean %s?", near)
	}
	return fmt.Sprintf("known here are %s", strings.Join(known, ", "))
}

// sectionKeys are the keys directly in our sections.
var sectionKeys = map[string][]string{
	shimURI: tomlKeys[ShimConfig](),
	taskURI: tomlKeys[TaskConfig](),
}

// knownKeys are the keys that are known where path ends. The only tables inside a section whose keys are fixed are
// those of runtimes.
func knownKeys(uri string, path []string) []string {
	if len(path) == 1 {
		return sectionKeys[uri]
	}
	return tomlKeys[RuntimeConfig]()
}

// nearest returns the candidate that word is most likely a misspelling of, or "" if none is near: at most a third of
// the letters, and never more than three, may be wrong.
func nearest(word string, candidates []string) string {
	best, least := "", min(3, max(1, len(word)/3))+1
	for _, c := range candidates {
		if d := distance(normal(word), normal(c)); d < least {
			best, least = c, d
		}
	}
	return best
}

// normal makes spellings equal that people mix up.
func normal(key string) string {
	return strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(key))
}

// distance is the edit distance of Levenshtein: how many letters to insert, delete or change to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
