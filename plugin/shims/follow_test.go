// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v3"

	"github.com/shimyard/shimyard/manager/inspect"
)

// living is a daemon in which something happens before each answer.
type living struct {
	*yard
	before func(question any)
}

func (l living) ask(ctx context.Context, question, answer any) error {
	l.before(question)
	return l.yard.ask(ctx, question, answer)
}

// runUntil runs a command that goes on until its context ends.
func runUntil(ctx context.Context, d asker, args ...string) (string, error) {
	var b bytes.Buffer
	cmd := (&app{connect: func(string) (asker, error) { return d, nil }, now: time.Now}).command()
	root := &cli.Command{Name: "containerd", Writer: &b, ErrWriter: &b, Commands: []*cli.Command{cmd},
		ExitErrHandler: func(context.Context, *cli.Command, error) {}}
	err := root.Run(ctx, append([]string{"containerd", "shims"}, args...))
	return b.String(), err
}

// TestLogsFollowOn: each line once, as it comes, from where the lines before have ended, until the caller leaves.
func TestLogsFollowOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := node()
		y.logs = []inspect.LogsResponse{
			{Lines: []inspect.LogLine{{Number: 4, Text: "a"}, {Number: 5, Text: "b"}}, Last: 5},
			{Last: 5},
			{Lines: []inspect.LogLine{{Number: 6, Text: "c"}}, Last: 6},
		}
		ctx, leave := context.WithCancel(t.Context())
		out, err := runUntil(ctx, living{y, func(any) {
			if len(y.logs) == 0 {
				leave()
				y.logs = []inspect.LogsResponse{{Last: 6}}
			}
		}}, "logs", "-f", "--tail", "2", "redis")
		require.NoError(t, err)
		require.Equal(t, "a\nb\nc\n", out)
	})
}

// TestLogsFollowAsks: --tail is for the first question; one whose shim is gone has nothing to follow.
func TestLogsFollowAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := node()
		y.logs = []inspect.LogsResponse{{Lines: []inspect.LogLine{{Number: 5, Text: "b"}}, Last: 5}}
		var asked []inspect.LogsRequest
		gone := errors.New("the shim is gone")
		_, err := runUntil(t.Context(), living{y, func(question any) {
			if q, is := question.(*inspect.LogsRequest); is {
				asked = append(asked, *q)
			}
			if len(asked) == 2 {
				y.err = gone
			}
		}}, "logs", "--follow", "--tail", "1", "redis")
		require.ErrorContains(t, err, gone.Error())
		require.Equal(t, []inspect.LogsRequest{
			{Namespace: "default", ID: "redis", Tail: 1}, {Namespace: "default", ID: "redis", After: 5},
		}, asked)
	})
}

// TestTopGoesOn: a table for each interval, in which the share is that of the interval before it.
func TestTopGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := node()
		y.instances = y.instances[:1]
		ctx, leave := context.WithCancel(t.Context())
		samples := 0
		out, err := runUntil(ctx, living{y, func(any) {
			samples++
			shim := *y.instances[0].Shim
			shim.CPU += uint64(samples) * 1e9 // one, two, three seconds of CPU
			y.instances[0].Shim = &shim
			if samples == 3 {
				leave()
			}
		}}, "top", "--interval", "10s")
		require.NoError(t, err)
		var shares []string
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); f[0] == "41" {
				shares = append(shares, f[4])
			}
		}
		require.Equal(t, []string{"20.0", "30.0"}, shares, out)
		require.Equal(t, 2, strings.Count(out, "SHIM-PID"))
		require.NotContains(t, out, "\x1b", "it is no terminal")
	})
}
