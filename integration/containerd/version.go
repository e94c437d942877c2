// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"runtime/debug"
	"strings"

	"github.com/containerd/containerd/v2/version"
)

const (
	containerdModule = "github.com/containerd/containerd/v2"
	ourModule        = "github.com/shimyard/shimyard"
)

// buildVersion is the version of the containerd that is linked in, with ours as semver build metadata: clients that
// compare versions see containerd's, people see both.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return join(containerdVersion(info, version.Version), ourVersion(info))
}

// join makes one semantic version of two. Metadata of containerd's own (which says what its build knew of itself) goes;
// of ours, whatever metadata may not hold becomes a dot.
func join(containerd, ours string) string {
	containerd, _, _ = strings.Cut(strings.TrimPrefix(containerd, "v"), "+")
	ours = strings.Trim(notMetadata.ReplaceAllString(strings.TrimPrefix(ours, "v"), "."), ".")
	return containerd + "+shimyard." + ours
}

var notMetadata = regexp.MustCompile(`[^0-9A-Za-z-]+`)

// containerdVersion is that of the linked module, or fallback where the build has none to tell (a workspace, a local
// replacement).
func containerdVersion(info *debug.BuildInfo, fallback string) string {
	if v := moduleVersion(info, containerdModule); v != "" {
		return v
	}
	return fallback
}

// ourVersion is that of Shimyard's module where it is a dependency by version, else the commit of the checkout, else
// "devel".
func ourVersion(info *debug.BuildInfo) string {
	if v := moduleVersion(info, ourModule); v != "" {
		return v
	}
	var revision, modified string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = ".modified"
		}
	}
	if revision == "" {
		return "devel"
	}
	return "g" + revision + modified
}

// moduleVersion is the version of a dependency, "" if it is not one or comes from a directory.
func moduleVersion(info *debug.BuildInfo, path string) string {
	for _, m := range info.Deps {
		if m.Path != path {
			continue
		}
		if m.Replace != nil {
			m = m.Replace
		}
		if strings.HasPrefix(m.Version, "v") && m.Version != "v0.0.0" {
			return m.Version
		}
		return ""
	}
	return ""
}
