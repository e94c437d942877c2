// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"testing"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/typeurl/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestKeysTellThePartsApart: no two lists of parts have one key, and the environment counts.
func TestKeysTellThePartsApart(t *testing.T) {
	var k Keys
	seen := make(map[string][]string)
	for _, parts := range [][]string{nil, {""}, {"", ""}, {"a"}, {"a", "b"}, {"ab"}, {"b", "a"}, {"1:a"}, {"a1:b"}} {
		key := k.Of(parts...)
		require.Equal(t, key, k.Of(parts...))
		require.NotContains(t, seen, key, "%q", parts)
		seen[key] = parts
	}
	before := k.Of("a")
	t.Setenv("SOMETHING", "else")
	require.NotEqual(t, before, k.Of("a"))
}

func TestWish(t *testing.T) {
	options := func(o *runcoptions.Options) *anypb.Any {
		a, err := typeurl.MarshalAnyToProto(o)
		require.NoError(t, err)
		return a
	}
	damaged := options(&runcoptions.Options{})
	damaged.Value = []byte{0xff}
	for name, c := range map[string]struct {
		wish Wish
		want bool
	}{
		"plain": {Wish{ID: "c"}, true},
		"options": {Wish{ID: "c", Options: options(&runcoptions.Options{BinaryName: "crun"})},
			true},
		"options of another shim": {Wish{ID: "c", Options: &anypb.Any{TypeUrl: "other", Value: []byte{0xff}}},
			true},
		"options that cannot be read": {Wish{ID: "c", Options: damaged}, false},
		"cgroup of the shim": {Wish{ID: "c", Options: options(&runcoptions.Options{ShimCgroup: "/shims"})},
			false},
		"first container of a pod": {Wish{ID: "c", Groups: []string{"c"}}, true},
		"container of a pod":       {Wish{ID: "c", Groups: []string{"c", "pod"}}, false},
		"group of runc's shim":     {Wish{ID: "c", Groups: []string{"c"}, RuncGroup: true}, false},
	} {
		require.Equal(t, c.want, c.wish.Allowed(), name)
	}
}
