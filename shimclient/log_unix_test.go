// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package shimclient

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// writes records each write on its own.
type writes struct {
	mu  sync.Mutex
	all []string
}

func (w *writes) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, string(b))
	return len(b), nil
}

func (w *writes) get() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.all...)
}

var testFields = log.Fields{"id": "c1", "namespace": "my ns"}

const fieldText = ` id=c1 namespace="my ns"`

func TestLogFormat(t *testing.T) {
	for in, want := range map[string]string{
		`time="2025" level=info msg="a \"b\"" runtime=x`: `time="2025" level=info msg="a \"b\"" runtime=x` + fieldText,
		"goroutine 1 [running]:":                         "goroutine 1 [running]:" + fieldText,
		`{"level":"info","msg":"a"}`:                     `{"level":"info","msg":"a","id":"c1","namespace":"my ns"}`,
		` {"a":1 } `:                                     `{"a":1,"id":"c1","namespace":"my ns"}`,
		`{}`:                                             `{"id":"c1","namespace":"my ns"}`,
		`{"id":7}`:                                       `{"id":7,"fields.id":"c1","namespace":"my ns"}`,
		`{broken}`:                                       `{broken}` + fieldText,
		`{"a":1} {"b":2}`:                                `{"a":1} {"b":2}` + fieldText,
	} {
		require.Equal(t, want, string(newLineFields(testFields).addTo([]byte(in))))
	}
	for in, want := range map[string]string{"": `""`, "a-b.c/1@^+_": "a-b.c/1@^+_", "a=b": `"a=b"`, "a\nb": `"a\nb"`,
		"é": `"é"`} {
		require.Equal(t, want, logfmtValue(in))
	}
}

func FuzzLogLine(f *testing.F) {
	for _, seed := range []string{`{"a":1}`, `{}`, "level=info msg=x", "{", `{"id":{"a":[]}}`, "\xff", "{}\f"} {
		f.Add([]byte(seed))
	}
	fields := newLineFields(testFields)
	f.Fuzz(func(t *testing.T, line []byte) {
		var before, after map[string]any
		out := fields.addTo(line)
		if json.Unmarshal(line, &before) != nil || before == nil {
			require.Equal(t, string(line)+fieldText, string(out))
			return
		}
		require.NoError(t, json.Unmarshal(out, &after), "%s became %s", line, out)
		require.Contains(t, after, "namespace")
	})
}

func TestLogLines(t *testing.T) {
	out := &writes{}
	w := &lineWriter{out: out, fields: newLineFields(log.Fields{"id": "c"})}
	for _, part := range []string{"one\ntw", "o\n", "\n\r\n", "three\r\n", strings.Repeat("x", maxLine), "\nfour\n",
		strings.Repeat("y", maxLine+3), "\nlast"} {
		n, err := w.Write([]byte(part))
		require.NoError(t, err)
		require.Equal(t, len(part), n)
	}
	w.flush()
	w.flush()
	require.Equal(t, []string{"one id=c\n", "two id=c\n", "three id=c\n", strings.Repeat("x", maxLine) + " id=c\n",
		"four id=c\n",
		strings.Repeat("y", maxLine) + " id=c\n", "yyy id=c\n", "last id=c\n"}, out.get())
}

func TestOpenLog(t *testing.T) {
	noLaunchLeaks(t)
	path := filepath.Join(t.TempDir(), "log")
	out := &writes{}
	c, err := openLog(path, testFields, out)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.ModeNamedPipe|0o700, info.Mode())

	// Writers come and go; none of them blocks or ends the log.
	for _, text := range []string{"first\n", "second\n"} {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteString(text)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	eventually(t, func() bool { return len(out.get()) == 2 }, "lines come while the log is open")

	// What a shim wrote with its last breath is not lost, be it a whole line or not.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(strings.Repeat("panic\n", 1000) + "half")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	lines := out.get()
	require.Len(t, lines, 2+1000+1)
	require.Equal(t, "half"+fieldText+"\n", lines[len(lines)-1])

	// The fifo stays, and is taken again.
	again, err := openLog(path, testFields, out)
	require.NoError(t, err)
	require.NoError(t, again.Close())
}

// Close returns though somebody writes without end.
func TestCloseLogThatIsFlooded(t *testing.T) {
	noLaunchLeaks(t)
	path := filepath.Join(t.TempDir(), "log")
	c, err := openLog(path, testFields, &writes{})
	require.NoError(t, err)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		line := []byte(strings.Repeat("flood ", 500) + "\n")
		for {
			if _, err := f.Write(line); err != nil {
				return
			}
		}
	}()
	require.NoError(t, c.Close())
	<-ended // EPIPE: nobody reads any more
	require.NoError(t, f.Close())
}

func TestOpenLogRefusesOthers(t *testing.T) {
	noLaunchLeaks(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.WriteFile(at("file"), nil, 0o600))
	require.NoError(t, os.Mkdir(at("dir"), 0o700))
	require.NoError(t, unix.Mkfifo(at("fifo"), 0o700))
	require.NoError(t, os.Symlink(at("fifo"), at("link")))
	require.NoError(t, os.Symlink(at("new"), at("dangling")))
	for _, name := range []string{"file", "dir", "link", "dangling"} {
		_, err := OpenLog(at(name), testFields)
		require.True(t, errdefs.IsFailedPrecondition(err), "%s: %v", name, err)
	}
	require.NoFileExists(t, at("new"))
	_, err := OpenLog(filepath.Join(dir, "no", "log"), testFields)
	require.ErrorIs(t, err, os.ErrNotExist)
}
