// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

func createWarm(t testing.TB, l Layout) *Warm {
	t.Helper()
	w, err := l.CreateWarm()
	require.NoError(t, err)
	return w
}

func TestCreateWarm(t *testing.T) {
	l := newLayout(t)
	w, other := createWarm(t, l), createWarm(t, l)
	require.NotEqual(t, w.ID, other.ID)
	require.Error(t, ValidateID(testNS, w.ID), "no container can have it")
	require.Equal(t, filepath.Join(l.State, "."+w.ID), w.Path)
	requireMode(t, w.Path, os.ModeDir|0o700)
	require.Equal(t, "{}", content(t, filepath.Join(w.Path, configFile)))
	require.Equal(t, filepath.Join(w.Path, logFile), w.LogPath())
	require.Empty(t, names(t, l.Root))

	_, err := Layout{State: filepath.Join(t.TempDir(), "missing"), Root: l.Root}.CreateWarm()
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = Layout{}.CreateWarm()
	require.Error(t, err)
}

// TestListWarm finds directories of the form and nothing else, and nothing else finds them.
func TestListWarm(t *testing.T) {
	l := newLayout(t)
	found, err := l.ListWarm()
	require.NoError(t, err)
	require.Empty(t, found)
	w := createWarm(t, l)
	create(t, l, testID)
	put(t, filepath.Join(l.State, "._file"), "x")
	put(t, filepath.Join(l.State, ".hidden", "file"), "x")
	put(t, filepath.Join(l.State, testNS, "._deeper", "file"), "x")
	require.NoError(t, os.Symlink(t.TempDir(), filepath.Join(l.State, "._link")))
	found, err = l.ListWarm()
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, w.ID, found[0].ID)
	require.Equal(t, w.Path, found[0].Path)

	listing, err := l.List()
	require.NoError(t, err)
	require.Len(t, listing.Bundles, 1)
	require.Empty(t, listing.Unknown)
	_, err = l.Sweep(func(string, string) bool { return false })
	require.NoError(t, err)
	require.DirExists(t, w.Path)
	require.FileExists(t, filepath.Join(w.Path, configFile))

	found, err = Layout{State: filepath.Join(t.TempDir(), "missing"), Root: l.Root}.ListWarm()
	require.NoError(t, err)
	require.Empty(t, found)
	_, err = Layout{}.ListWarm()
	require.Error(t, err)
}

func TestWarmRecord(t *testing.T) {
	w := createWarm(t, newLayout(t))
	_, err := w.ReadRecord()
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	r := &WarmRecord{
		Namespace: testNS, Runtime: "io.containerd.runc.v2", Key: "k", BootID: "b",
		Launch: Launch{Token: "t", Binary: "/bin/shim", At: time.Unix(1, 0).UTC()}, Shim: &Proc{Pid: 7, StartTime: 9},
	}
	require.NoError(t, w.WriteRecord(r))
	require.Zero(t, r.Version)
	requireMode(t, filepath.Join(w.Path, warmFile), 0o600)
	got, err := w.ReadRecord()
	require.NoError(t, err)
	r.Version, r.ID = WarmRecordVersion, w.ID
	require.Equal(t, r, got)
	require.ElementsMatch(t, []string{configFile, warmFile}, names(t, w.Path))

	for name, data := range map[string]string{
		"empty": "", "no JSON": "{", "no object": "[]", "no version": `{"namespace":"n"}`,
		"newer":        `{"version":2,"namespace":"n"}`,
		"no namespace": `{"version":1}`, "pid": `{"version":1,"namespace":"n","shim":{"pid":0}}`,
		"too long": strings.Repeat(" ", maxFile+1),
	} {
		put(t, filepath.Join(w.Path, warmFile), data)
		_, err = w.ReadRecord()
		require.ErrorIs(t, err, ErrForeign, name)
	}
	put(t, filepath.Join(w.Path, warmFile), `{"version":1,"namespace":"n","later":{"a":1}}`)
	_, err = w.ReadRecord()
	require.NoError(t, err, "what a later version adds is passed over")
	require.NoError(t, w.Remove())
	require.True(t, errdefs.IsNotFound(w.WriteRecord(r)))
}

func TestWarmBootstrap(t *testing.T) {
	w := createWarm(t, newLayout(t))
	put(t, filepath.Join(w.Path, addressFile), "unix:///run/s/a")
	_, err := w.ReadBootstrap()
	require.True(t, errdefs.IsNotFound(err), "what the shim wrote while it was started is no answer of `start`: %v",
		err)
	r := &bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: "unix:///run/s/b"}
	require.NoError(t, w.WriteBootstrap(r))
	got, err := w.ReadBootstrap()
	require.NoError(t, err)
	require.True(t, proto.Equal(r, got))
	put(t, filepath.Join(w.Path, bootstrapFile), "{")
	_, err = w.ReadBootstrap()
	require.ErrorIs(t, err, ErrForeign)
}

func TestLendLog(t *testing.T) {
	l := newLayout(t)
	w, other, b := createWarm(t, l), createWarm(t, l), create(t, l, testID)
	require.ErrorIs(t, w.LendLog(b), os.ErrNotExist)
	for _, x := range []*Warm{w, other} {
		put(t, x.LogPath(), x.ID)
		require.NoError(t, x.LendLog(b))
		require.Equal(t, x.ID, content(t, b.LogPath()), "the last one counts")
		require.NoError(t, x.LendLog(b), "again")
	}
	require.NoError(t, b.Remove())
	require.Equal(t, w.ID, content(t, w.LogPath()))
	require.Equal(t, other.ID, content(t, other.LogPath()))
	require.ErrorIs(t, w.LendLog(b), os.ErrNotExist, "the bundle is gone")
}

func TestRemoveWarm(t *testing.T) {
	l := newLayout(t)
	w, other := createWarm(t, l), createWarm(t, l)
	elsewhere := t.TempDir()
	put(t, filepath.Join(elsewhere, "precious"), "x")
	if runtime.GOOS != "windows" {
		require.NoError(t, os.Symlink(elsewhere, filepath.Join(w.Path, "s")))
	}
	put(t, w.LogPath(), "x")
	require.NoError(t, w.Remove())
	require.NoDirExists(t, w.Path)
	require.Equal(t, "x", content(t, filepath.Join(elsewhere, "precious")))
	require.DirExists(t, other.Path)
	require.NoError(t, w.Remove())
}

// FuzzWarmRecord: whatever the file holds, what is taken for a record names a namespace and a process that can be.
func FuzzWarmRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"namespace":"n","key":"k","launch":{"token":"t"},"shim":{"pid":1,"start_time":2}}`))
	f.Add([]byte(`{"version":1,"namespace":"n","shim":{"pid":-1}}`))
	f.Add([]byte(`{"version":1e9}`))
	f.Add([]byte(`null`))
	f.Add([]byte("{\"namespace\":\"\\u0000\""))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseWarmRecord(data)
		if err != nil {
			return
		}
		require.NotEmpty(t, r.Namespace)
		require.Equal(t, WarmRecordVersion, r.Version)
		if r.Shim != nil {
			require.Positive(t, r.Shim.Pid)
		}
		w := Layout{State: dir, Root: dir}.warm("_fuzz")
		r.ID = w.ID
		require.NoError(t, os.MkdirAll(w.Path, 0o700))
		require.NoError(t, w.WriteRecord(r))
		again, err := w.ReadRecord()
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}
