// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package buildkit

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStepsInARow(t *testing.T) {
	h := theHost(t)
	const steps = 12
	var b strings.Builder
	fmt.Fprintf(&b, "FROM %s\n", Image)
	for i := range steps {
		fmt.Fprintf(&b, "RUN echo %d >> /steps\n", i)
	}
	result := h.build(t, b.String())
	var want []string
	for i := range steps {
		want = append(want, fmt.Sprint(i))
	}
	require.Equal(t, strings.Join(want, "\n"), result.file("steps"))
}

func TestFromScratch(t *testing.T) {
	h := theHost(t)
	b := h.build(t, `FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin"]
RUN echo one > /one
USER 1000:1000
ENV WORD=two
WORKDIR /tmp/work
RUN ["/bin/sh", "-c", "echo $WORD $(id -u) $(pwd) $0 > /dev/shm/x; cat /dev/shm/x"]
USER 0
RUN mkdir -p /out && echo $WORD $(id -u) $(pwd) > /out/two
`)
	require.Equal(t, "one", b.file("one"))
	require.Equal(t, "two 0 /tmp/work", b.file("out/two"))
	require.Contains(t, b.output.String(), "two 1000 /tmp/work /bin/sh")
}

// Each stage waits for all others, so that the build ends if they run at once, and only then.
func TestStepsAtOnce(t *testing.T) {
	h := theHost(t)
	const stages = 10
	var b, last strings.Builder
	last.WriteString("FROM scratch\n")
	for i := range stages {
		fmt.Fprintf(&b, "FROM %s AS s%d\nRUN --mount=type=cache,id=meet,target=/meet "+
			"touch /meet/%d; until [ $(ls /meet | wc -l) -ge %d ]; do sleep 0.1; done; echo %d > /mine\n",
			Image, i, i, stages, i)
		fmt.Fprintf(&last, "COPY --from=s%d /mine /%d\n", i, i)
	}
	result := h.build(t, b.String()+last.String())
	for i := range stages {
		require.Equal(t, fmt.Sprint(i), result.file(fmt.Sprint(i)))
	}
}

func TestExitCodes(t *testing.T) {
	h := theHost(t)
	for command, want := range map[string]string{
		"exit 42": "exit code: 42", "sh -c 'kill -9 $$'; exit $?": "exit code: 137", "/no/such/program": "exit code: 127",
	} {
		out := h.fails(t, "FROM "+Image+"\nRUN "+command+"\n")
		require.Contains(t, out, want, "%s: %s", command, out)
	}
	out := h.fails(t, "FROM "+Image+"\n"+`RUN ["/no/such/program"]`+"\n")
	require.Contains(t, out, "/no/such/program")
	// The others end with the one that fails.
	h.fails(t, fmt.Sprintf("FROM %[1]s AS a\nRUN %[2]s sleep 1000000\nFROM %[1]s AS b\nRUN sleep 1; exit 3\n"+
		"FROM scratch\nCOPY --from=a / /\nCOPY --from=b / /\n", Image, mark))
	require.Equal(t, "yes", h.build(t, "FROM "+Image+"\nRUN echo yes > /after\n").file("after"))
}

func TestCacheMount(t *testing.T) {
	h := theHost(t)
	// A step that is not in the cache of steps, since no two are the same, finds what the others left.
	for i := range 3 {
		b := h.build(t, fmt.Sprintf("FROM %s\nRUN --mount=type=cache,id=count,target=/cache "+
			"echo %d >> /cache/list; cp /cache/list /list; grep -q ' /cache ' /proc/mounts\n", Image, i))
		require.Len(t, strings.Fields(b.file("list")), i+1)
		require.NoFileExists(t, filepath.Join(b.result, "cache/list"))
	}
}

func TestOtherMounts(t *testing.T) {
	h := theHost(t)
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("of the test"), 0o600))
	b := h.build(t, "FROM "+Image+` AS other
RUN echo bound > /file
FROM `+Image+`
RUN --mount=type=secret,id=s,target=/secret --mount=type=tmpfs,target=/t --mount=from=other,target=/other \
  cat /secret /other/file > /out && grep -q 'tmpfs /t ' /proc/mounts && touch /t/gone
RUN --network=none ls /sys/class/net > /net
`, "--secret=id=s,src="+secret)
	require.Equal(t, "of the testbound", b.file("out"))
	require.NoFileExists(t, filepath.Join(b.result, "t/gone"))
	require.Equal(t, "lo", b.file("net"))
}

func TestCachedStepsAreNotRun(t *testing.T) {
	h := theHost(t)
	dockerfile := "FROM " + Image + "\nRUN cat /proc/sys/kernel/random/uuid > /once\n"
	first := h.build(t, dockerfile)
	require.Equal(t, first.file("once"), h.build(t, dockerfile).file("once"))
	require.NotEqual(t, first.file("once"), h.build(t, dockerfile, "--no-cache").file("once"))
}

func TestOutputIsWhole(t *testing.T) {
	h := theHost(t)
	const lines = 5000
	b := h.build(t, fmt.Sprintf("FROM %s\nRUN for i in $(seq %d); do echo line $i.; done; echo last >&2\n", Image, lines))
	require.Equal(t, lines, strings.Count(b.output.String(), " line ")-1, "its command is one more")
	require.Contains(t, b.output.String(), "line 5000.")
	require.Contains(t, b.output.String(), " last\n")
}
