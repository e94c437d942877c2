// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestListNothing(t *testing.T) {
	dir := t.TempDir()
	l := Layout{State: filepath.Join(dir, "missing"), Root: filepath.Join(dir, "root")}
	listing, err := l.List()
	require.NoError(t, err)
	require.Equal(t, Listing{}, listing)
	require.Empty(t, names(t, dir))
}

func TestListClassifies(t *testing.T) {
	l := newLayout(t)
	create(t, l, "ours")
	empty := filepath.Join(l.State, testNS, "empty")
	require.NoError(t, os.Mkdir(empty, 0o700))
	for name := range known {
		put(t, filepath.Join(l.State, "stock", "with-"+name, name), "x")
	}
	put(t, filepath.Join(l.State, testNS, "strange", "notes.txt"), "x")
	put(t, filepath.Join(l.State, testNS, "file"), "x")
	put(t, filepath.Join(l.State, testNS, "bad name", "config.json"), "x")
	put(t, filepath.Join(l.State, testNS, "_warm", "config.json"), "x")
	require.NoError(t, os.Symlink(filepath.Join(l.State, testNS, "ours"), filepath.Join(l.State, testNS, "link")))
	put(t, filepath.Join(l.State, "nsfile"), "x")
	put(t, filepath.Join(l.State, "bad ns", testID, "config.json"), "x")
	require.NoError(t, os.Symlink(filepath.Join(l.State, testNS), filepath.Join(l.State, "nslink")))
	for _, hidden := range []string{"._a1b2", ".-rm.x.y", ".ours", ".file"} {
		put(t, filepath.Join(l.State, hidden, "config.json"), "x")
		put(t, filepath.Join(l.State, testNS, hidden, "config.json"), "x")
	}

	listing, err := l.List()
	require.NoError(t, err)
	var got []string
	for _, b := range listing.Bundles {
		got = append(got, b.Namespace+"/"+b.ID)
		require.Equal(t, filepath.Join(l.State, b.Namespace, b.ID), b.Path)
		require.Equal(t, b.ID != "strange", b.Recognized(), b.ID)
		require.Equal(t, b.ID == "empty", b.Empty(), b.ID)
	}
	want := []string{testNS + "/empty", testNS + "/ours", testNS + "/strange"}
	for name := range known {
		want = append(want, "stock/with-"+name)
	}
	require.ElementsMatch(t, want, got)
	require.ElementsMatch(t, []string{
		filepath.Join(l.State, testNS, "file"),
		filepath.Join(l.State, testNS, "bad name"),
		filepath.Join(l.State, testNS, "_warm"),
		filepath.Join(l.State, testNS, "link"),
		filepath.Join(l.State, "nsfile"),
		filepath.Join(l.State, "bad ns"),
		filepath.Join(l.State, "nslink"),
	}, listing.Unknown)
}

func TestEmptyOfAGoneBundle(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	require.NoError(t, b.Remove())
	require.False(t, b.Empty())
}

func TestEmptyBundleIsRemoved(t *testing.T) {
	l := newLayout(t)
	require.NoError(t, os.MkdirAll(filepath.Join(l.State, testNS, testID), 0o700))
	listing, err := l.List()
	require.NoError(t, err)
	require.Len(t, listing.Bundles, 1)
	require.True(t, listing.Bundles[0].Empty())
	require.NoError(t, listing.Bundles[0].Remove())
	requireNothing(t, l)
	create(t, l, testID)
}
