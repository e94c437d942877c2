// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func fullRecord() *Record {
	at := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)
	return &Record{
		Version: RecordVersion,
		Runtime: "io.containerd.runc.v2",
		BootID:  "0c0f7f6e-1111-2222-3333-444455556666",
		Launch:  &Launch{Token: "t", Binary: "/usr/bin/containerd-shim-runc-v2", At: at},
		Joined:  true,
		Shim:    &Proc{Pid: 12, StartTime: 1 << 60},
		Created: true,
		Task: &TaskState{
			Status: "STOPPED", Pid: 13, PidStart: 14, Stdin: "/in", Stdout: "/out", Stderr: "/err", Terminal: true,
			Exit: &Exit{Pid: 13, Status: 137, At: at, Told: true, DeleteTold: true},
		},
		Execs: map[string]*ExecState{"e1": {Pid: 15}, "e2": {Pid: 16, Exit: &Exit{Pid: 16, At: at.Add(1)}}},
	}
}

func TestRecordRoundTrip(t *testing.T) {
	b := create(t, newLayout(t), testID)
	_, err := b.ReadRecord()
	require.True(t, errdefs.IsNotFound(err), "%v", err)

	for _, want := range []*Record{fullRecord(), {Version: RecordVersion}} {
		require.NoError(t, b.WriteRecord(want))
		got, err := b.ReadRecord()
		require.NoError(t, err)
		require.Equal(t, want, got)
		requireMode(t, b.file("shimyard.json"), 0o600)
	}
	require.Equal(t, `{"version":1}`, content(t, b.file("shimyard.json")))
}

// TestRecordBytes pins the form on disk, which later versions of this code read.
func TestRecordBytes(t *testing.T) {
	b := create(t, newLayout(t), testID)
	require.NoError(t, b.WriteRecord(fullRecord()))
	require.JSONEq(t, `{"version":1,"runtime":"io.containerd.runc.v2","boot_id":"0c0f7f6e-1111-2222-3333-444455556666",
		"launch":{"token":"t","binary":"/usr/bin/containerd-shim-runc-v2","at":"2024-05-06T07:08:09.123456789Z"},
		"joined":true,"shim":{"pid":12,"start_time":1152921504606846976},"created":true,
		"task":{"status":"STOPPED","pid":13,"pid_start":14,"stdin":"/in","stdout":"/out","stderr":"/err","terminal":true,
			"exit":{"pid":13,"status":137,"at":"2024-05-06T07:08:09.123456789Z","told":true,"delete_told":true}},
		"execs":{"e1":{"pid":15},"e2":{"pid":16,"exit":{"pid":16,"at":"2024-05-06T07:08:09.12345679Z"}}}}`,
		content(t, b.file("shimyard.json")))
}

func TestWriteRecordStampsTheVersion(t *testing.T) {
	b := create(t, newLayout(t), testID)
	r := &Record{Runtime: "x"}
	require.NoError(t, b.WriteRecord(r))
	require.Zero(t, r.Version)
	got, err := b.ReadRecord()
	require.NoError(t, err)
	require.Equal(t, RecordVersion, got.Version)
}

func TestReadRecordErrors(t *testing.T) {
	b := create(t, newLayout(t), testID)
	for _, bad := range []string{
		"", "{", "null", "[]", `{}`, `{"version":0}`, `{"version":-1}`, `{"version":2}`,
		`{"version":2,"task":"of another type"}`, `{"version":1}{}`,
		`{"version":1,"task":[]}`, `{"version":1,"shim":{"pid":0}}`, `{"version":1,"shim":{"pid":-4}}`,
		`{"version":1,"execs":{"e":null}}`,
		`{"version":1,"task":{"pid":-1}}`, `{"version":1,"launch":{"at":"yesterday"}}`,
		`{"version":1,"runtime":"cut of`, strings.Repeat("\x00", 100),
		`{"version":1,"runtime":"` + strings.Repeat("x", maxFile) + `"}`,
	} {
		put(t, b.file("shimyard.json"), bad)
		_, err := b.ReadRecord()
		require.ErrorIs(t, err, ErrForeign, "%.100q", bad)
		require.True(t, errdefs.IsFailedPrecondition(err))
		require.ErrorContains(t, err, b.file("shimyard.json"))
	}
	put(t, b.file("shimyard.json"), `{"version":1,"runtime":"x","new":true}`)
	got, err := b.ReadRecord()
	require.NoError(t, err, "a field that may be ignored is")
	require.Equal(t, "x", got.Runtime)
}

// TestRecordIsReplacedAsAWhole: a reader beside the writers sees one record or another, never a part.
func TestRecordIsReplacedAsAWhole(t *testing.T) {
	b := create(t, newLayout(t), testID)
	long, short := fullRecord(), &Record{Version: RecordVersion}
	long.Runtime = strings.Repeat("x", 1<<16)
	require.NoError(t, b.WriteRecord(short))
	var writers sync.WaitGroup
	for _, r := range []*Record{long, short} {
		writers.Go(func() {
			for range 100 {
				if err := b.WriteRecord(r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 200 {
		got, err := b.ReadRecord()
		require.NoError(t, err)
		require.Contains(t, []int{0, 1 << 16}, len(got.Runtime))
	}
	writers.Wait()
	require.Equal(t, []string{configFile, rootfsDir, recordFile, workLink}, names(t, b.Path),
		"no temporary file is left")
}

// TestTornTempFileIsIgnored: the daemon died in the middle of writing a record.
func TestTornTempFileIsIgnored(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	require.NoError(t, b.WriteRecord(fullRecord()))
	require.NoError(t, b.WriteBootstrap(fullBootstrap(t)))
	put(t, b.file(".shimyard.json.123"), `{"version":1,"run`)
	put(t, b.file(".bootstrap.json.456"), "")

	got, err := b.ReadRecord()
	require.NoError(t, err)
	require.Equal(t, fullRecord(), got)
	_, err = b.ReadBootstrap()
	require.NoError(t, err)
	require.NoError(t, b.WriteRecord(&Record{}))
	listing, err := l.List()
	require.NoError(t, err)
	require.Len(t, listing.Bundles, 1)
	require.NoError(t, b.Remove())
	requireNothing(t, l)
}

func TestWriteIntoGoneBundle(t *testing.T) {
	l := newLayout(t)
	b := create(t, l, testID)
	require.NoError(t, b.Remove())
	require.True(t, errdefs.IsNotFound(b.WriteRecord(&Record{})))
	require.True(t, errdefs.IsNotFound(b.WriteBootstrap(fullBootstrap(t))))
	require.True(t, errdefs.IsNotFound(b.WriteSandbox("pod")))
	require.True(t, errdefs.IsNotFound(b.WriteShimBinary("/bin/shim")))
	requireNothing(t, l)
}

func TestFailedWriteLeavesTheOldRecord(t *testing.T) {
	b := create(t, newLayout(t), testID)
	require.NoError(t, os.Mkdir(b.file(recordFile), 0o700))
	put(t, b.file(recordFile+"/x"), "")
	require.Error(t, b.WriteRecord(&Record{}))
	require.Equal(t, []string{configFile, rootfsDir, recordFile, workLink}, names(t, b.Path))
}

func FuzzReadRecord(f *testing.F) {
	b := create(f, newLayout(f), testID)
	require.NoError(f, b.WriteRecord(fullRecord()))
	f.Add([]byte(content(f, b.file(recordFile))))
	for _, seed := range []string{`{"version":1}`, `{"version":2}`, `{"version":1,"execs":{"":{}}}`,
		`{"version":1,"launch":{"at":"2024-01-01T00:00:00+23:59"}}`, "{", "null"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		put(t, b.file(recordFile), string(data))
		r, err := b.ReadRecord()
		if err != nil {
			require.ErrorIs(t, err, ErrForeign)
			return
		}
		for id, e := range r.Execs {
			require.NotNil(t, e, id)
		}
		require.NoError(t, b.WriteRecord(r))
		first := content(t, b.file(recordFile))
		again, err := b.ReadRecord()
		require.NoError(t, err)
		require.NoError(t, b.WriteRecord(again))
		require.Equal(t, first, content(t, b.file(recordFile)))
	})
}
