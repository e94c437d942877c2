// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
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

// surroundingsTime is for how long the digest of the surroundings is cached: a create that races with a change of the daemon's limits may see
// either.
const surroundingsTime = time.Second

// surroundings is the digest of what a child process inherits from the daemon, see readSurroundings.
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
