// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package shimclient

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestEscapeControls(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext é": "plain\ttext é", "\x1b[2Jgone": `\x1b[2Jgone`, "a\x00b\x7f": `a\x00b\x7f`,
		"\u009b1m": `\u009b1m`, "\xff": "\xff", "a\rb": `a\rb`, "": "",
	} {
		require.Equal(t, want, string(escapeControls([]byte(in))))
	}
}

func TestLogKeepsLastLines(t *testing.T) {
	var r logRing
	lines, last := r.after(0)
	require.Empty(t, lines)
	require.Zero(t, last)
	for n := range 1000 {
		r.add(fmt.Sprint("line ", n))
	}
	lines, last = r.after(0)
	require.Len(t, lines, ringLines)
	require.Equal(t, uint64(1000), last)
	require.Equal(t, "line 999", lines[ringLines-1].Text)
	lines, _ = r.after(998)
	require.Len(t, lines, 2)

	// Long lines push out more, and the last one always stays.
	r.add(strings.Repeat("x", ringBytes))
	lines, _ = r.after(0)
	require.Len(t, lines, 1)
	r.add("after")
	lines, _ = r.after(0)
	require.Equal(t, "after", lines[len(lines)-1].Text)
}

// openTestLog opens a log, and its other end for writing.
func openTestLog(t *testing.T) (*Log, *os.File) {
	path := filepath.Join(t.TempDir(), "log")
	c, err := openLog(path, testFields, &writes{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return c, f
}

func TestDumpStacks(t *testing.T) {
	noLaunchLeaks(t)
	// Longer than a line of the log and than what a fifo holds.
	stacks := "goroutine 1 [running]:\n\tmain.main(\"a\")\n" + strings.Repeat("goroutine 2 [select]:\n\tx.y()\n",
		10_000)
	text := dumpBegin + "\n" + stacks + "\n" + dumpEnd
	object, err := json.Marshal(map[string]string{"level": "info", "msg": text})
	require.NoError(t, err)
	for name, written := range map[string]string{
		"logfmt": `time="2026" level=info msg=` + strconv.Quote(text) + " runtime=x\n",
		"json":   string(object) + "\n",
		"plain":  "before\n" + text + "\nafter\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, f := openTestLog(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			got, err := c.DumpStacks(ctx, func() error {
				_, err := c.DumpStacks(ctx, func() error { return nil })
				require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
				go func() { _, _ = f.WriteString(written) }()
				return nil
			})
			require.NoError(t, err)
			require.Equal(t, stacks, got)
			require.Nil(t, c.lines.tap.Load())
		})
	}
}

func TestDumpStacksThatDoNotCome(t *testing.T) {
	noLaunchLeaks(t)
	c, f := openTestLog(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.DumpStacks(ctx, func() error {
		_, err := f.WriteString("level=info msg=nothing\n")
		cancel()
		return err
	})
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	_, err = c.DumpStacks(t.Context(), func() error { return errdefs.ErrNotFound })
	require.True(t, errdefs.IsNotFound(err), "what asking failed with is the answer")
}
