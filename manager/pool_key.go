// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/shimclient"
)

// poolSpecFor says what shim of the pool could serve a new task, if any could: not where the shim is to be in a cgroup of its own, nor where
// the spec groups containers, except for the first container of a pod.
func (m *ShimManager) poolSpecFor(i *Instance, facts specFacts, b shimclient.Binary, opts *anypb.Any) (poolSpec, bool) {
	limits := m.config.pool(b)
	if runtime.GOOS != "linux" || i.kind != KindTask || limits.Warm <= 0 || facts.runcGroup || hasShimCgroup(opts) || m.pool.refuses(b) {
		return poolSpec{}, false
	}
	if slices.ContainsFunc(facts.groups, func(g string) bool { return g != i.id }) {
		return poolSpec{}, false
	}
	return poolSpec{key: m.poolKey(i.namespace, b, opts), namespace: i.namespace, binary: b, options: opts, limits: limits}, true
}

// hasShimCgroup: the shim itself is to be put into a cgroup, which cannot be done later. What cannot be read says so, to be safe.
func hasShimCgroup(opts *anypb.Any) bool {
	if opts == nil || !typeurl.Is(opts, (*runcoptions.Options)(nil)) {
		return false
	}
	var o runcoptions.Options
	return typeurl.UnmarshalTo(opts, &o) != nil || o.ShimCgroup != ""
}

// poolKey is the digest of all that a shim got at its start and cannot be given later: whoever would start one that differs in nothing of
// it can take the one that is there.
func (m *ShimManager) poolKey(namespace string, b shimclient.Binary, opts *anypb.Any) string {
	h := sha256.New()
	add := func(parts ...string) {
		for _, p := range parts {
			fmt.Fprintf(h, "%d:%s", len(p), p)
		}
	}
	add(namespace, b.Runtime, b.Path, fmt.Sprint(b.File), opts.GetTypeUrl(), string(opts.GetValue()), log.GetLevel().String())
	add(m.config.SocketDir, m.config.GRPCAddress, m.config.TTRPCAddress)
	add(m.config.Env...)
	add(m.config.runtime(b).Env...)
	add(os.Environ()...)
	add(m.pool.surroundings())
	return hex.EncodeToString(h.Sum(nil))
}

// inherited are the files that tell what else a child has of the daemon, besides its environment: limits, cgroups, priorities, security.
var inherited = []string{"limits", "cgroup", "oom_score_adj", "attr/current"}

// inheritedStatus are the lines of /proc/self/status that do.
var inheritedStatus = [][]byte{
	[]byte("Umask"), []byte("Uid"), []byte("Gid"), []byte("Groups"), []byte("CapInh"), []byte("CapPrm"), []byte("CapEff"), []byte("CapBnd"), []byte("CapAmb"),
	[]byte("NoNewPrivs"), []byte("Seccomp"), []byte("Cpus_allowed"), []byte("Mems_allowed"),
}

// inheritedNamespaces are those that matter to a shim.
var inheritedNamespaces = []string{"mnt", "cgroup", "ipc", "net", "pid_for_children", "time_for_children", "user", "uts"}

// surroundingsTime is for how long what was read of the surroundings holds. Whoever changes them has as little to say about a container that
// is being started at that moment as about one that has just been started.
const surroundingsTime = time.Second

// surroundings is the digest of what a child process takes over from the daemon now.
func (o *pool) surroundings() string {
	o.mu.Lock()
	digest, read := o.around, o.aroundAt
	o.mu.Unlock()
	if digest != "" && time.Since(read) < surroundingsTime {
		return digest
	}
	read, digest = time.Now(), readSurroundings()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.around, o.aroundAt = digest, read
	return digest
}

// readSurroundings reads them. What cannot be read is the same for all.
func readSurroundings() string {
	h := sha256.New()
	for _, name := range inherited {
		data, _ := os.ReadFile("/proc/self/" + name)
		fmt.Fprintf(h, "%d:%s", len(data), data)
	}
	for _, name := range inheritedNamespaces {
		target, _ := os.Readlink("/proc/self/ns/" + name)
		fmt.Fprintf(h, "%d:%s", len(target), target)
	}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range bytes.Lines(status) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		if slices.ContainsFunc(inheritedStatus, func(s []byte) bool { return bytes.Equal(s, name) }) {
			h.Write(line)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
