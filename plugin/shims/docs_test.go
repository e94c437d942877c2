// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// A shell completes subcommands, flags and the ids that the daemon has; where it cannot be asked, nothing.
func TestCompletion(t *testing.T) {
	const ask = "--generate-shell-completion"
	complete := func(y *yard, words ...string) string {
		args := os.Args
		t.Cleanup(func() { os.Args = args })
		os.Args = append(append([]string{"containerd", "shims"}, words...), ask)
		out, code, failure := run(t, y, append(words, ask)...)
		require.Zero(t, code, failure)
		return out
	}
	for _, name := range []string{"ls", "inspect", "dump", "logs", "top", "check"} {
		require.Contains(t, complete(node()), name+":")
	}
	require.Contains(t, complete(node(), "ls", "--no"), "--no-headers:")
	for _, name := range []string{"inspect", "dump", "logs"} {
		require.Equal(t, "redis\n"+longID+"\ngone\n", complete(node(), name))
		require.Equal(t, "redis\n", complete(node(), name, "re"))
		require.Empty(t, complete(&yard{err: errdefs.ErrUnavailable}, name))
	}
}

// The manual page has each subcommand, flag and exit code.
func TestManual(t *testing.T) {
	data, err := os.ReadFile("../../hack/package/shimyard.8")
	require.NoError(t, err)
	page := string(data)
	for _, c := range (&app{}).command().Commands {
		require.Contains(t, page, ".It Cm shims "+c.Name, "the page has no %s", c.Name)
		_, section, _ := strings.Cut(page, ".It Cm shims "+c.Name)
		section, _, _ = strings.Cut(section, ".It Cm shims ")
		for _, f := range c.Flags {
			require.Contains(t, section, "Fl Fl "+f.Names()[0], "%s", c.Name)
		}
	}
	for code := range ExitUnsupported + 1 {
		require.Contains(t, page, fmt.Sprintf("\n.It Li %d\n", code))
	}
}
