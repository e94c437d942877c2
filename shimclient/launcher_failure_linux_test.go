// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

var stages = []shimtest.Stage{shimtest.AtEntry, shimtest.BeforeFork, shimtest.AfterFork, shimtest.AfterReply}

// A helper fails or dies at each point, and leaves its daemon behind where there is one.
func TestStartFailsAtEachStage(t *testing.T) {
	for _, stage := range stages {
		for name, faults := range map[string]shimtest.StartFaults{
			"fails": {FailAt: stage, FailText: "no luck", LeaveDaemon: true},
			"dies":  {DieAt: stage},
		} {
			t.Run(fmt.Sprintf("%s %s", name, stage), func(t *testing.T) {
				lt := newLaunchTest(t, shimtest.Scenario{Start: faults})
				_, err := lt.Start(lt.ctx, lt.req)
				require.ErrorContains(t, err, lt.Path)
				if name == "fails" {
					require.ErrorContains(t, err, "no luck")
				} else {
					require.ErrorContains(t, err, "killed")
				}
				require.Len(t, lt.stdins(), 1)
				lt.requireNothingLeft()
			})
		}
	}
}

// A helper hangs at each point, and its caller gives up, or the launch deadline passes.
func TestStartEndedAtEachStage(t *testing.T) {
	for _, stage := range stages {
		for _, cancelled := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s,cancelled=%v", stage, cancelled), func(t *testing.T) {
				lt := newLaunchTest(t, shimtest.Scenario{Start: shimtest.StartFaults{HangAt: stage,
					Stderr: "working on it\n"}})
				ctx, cancel := context.WithCancel(lt.ctx)
				defer cancel()
				if cancelled {
					go func() {
						defer cancel()
						lt.Await(shimtest.KindExec, "start", 1)
						if stage == shimtest.AfterFork || stage == shimtest.AfterReply {
							lt.Await(shimtest.KindExec, "daemon", 1)
						}
					}()
				} else {
					lt.config.LaunchTimeout = 300 * time.Millisecond
				}
				_, err := lt.Start(ctx, lt.req)
				require.Error(t, err)
				if cancelled {
					require.ErrorContains(t, err, "working on it")
					require.True(t, errdefs.IsCanceled(err), "%v", err)
				} else {
					require.True(t, errdefs.IsDeadlineExceeded(err), "%v", err)
					require.ErrorIs(t, err, ErrLaunchTimeout)
				}
				lt.requireNothingLeft()
			})
		}
	}
}

func TestStartCancelledAtAnyTime(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{})
	for i := range 30 {
		ctx, cancel := context.WithTimeout(lt.ctx, time.Duration(i)*2*time.Millisecond)
		_, err := lt.Start(ctx, lt.req)
		cancel()
		if err == nil {
			lt.end()
		}
		lt.requireNothingLeft()
	}
}

// The socket of a living group is left alone when a start that joins it fails.
func TestFailedJoinLeavesTheGroup(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{})
	_, err := lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	lt.Update(func(s *shimtest.Scenario) { s.Start.FailAt = shimtest.AfterReply })
	join := lt.req
	join.Token = NewToken()
	_, err = lt.Start(lt.ctx, join)
	require.Error(t, err)
	require.Len(t, lt.Procs(), 1)
	require.Len(t, lt.Sockets(), 1)
	conn, err := net.Dial("unix", lt.Sockets()[0])
	require.NoError(t, err)
	conn.Close()
}

// What a shim says about where it listens is cleaned up too, by id of the group and by address.
func TestFailedStartRemovesOtherSockets(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{Start: shimtest.StartFaults{DieAt: shimtest.AfterFork}})
	require.NoError(t, os.WriteFile(filepath.Join(lt.req.Bundle, "config.json"),
		[]byte(`{"annotations":{"io.containerd.runc.v2.group":"pod"}}`), 0o600))
	lt.req.SocketIDs = []string{"pod"}
	told := filepath.Join(socketDir(t), "told")
	deadSocket(t, told)
	lt.req.Addresses = func() []string { return []string{"unix://" + told} }
	_, err := lt.Start(lt.ctx, lt.req)
	require.Error(t, err)
	lt.requireNothingLeft()
	require.NoFileExists(t, told)
}

// TestTooLongReplies: whatever command a shim floods its standard output at, it is ended and no more than 1 MiB is kept
// of it. What is as long as that is read, and judged as a reply.
func TestTooLongReplies(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{})
	run := map[string]func(Binary) error{
		"start": func(b Binary) error {
			r := lt.req
			r.Binary = b
			_, err := lt.Start(lt.ctx, r)
			return err
		},
		"delete": func(b Binary) error {
			_, err := lt.Delete(lt.ctx, DeleteRequest{Binary: b, Namespace: "ns", ID: "c1", Bundle: lt.req.Bundle})
			return err
		},
		"info": func(b Binary) error {
			_, err := lt.Info(lt.ctx, b, nil)
			return err
		},
	}
	for name, script := range map[string]string{
		"for ever": "exec cat /dev/zero",
		"too much": "head -c 1048577 /dev/zero",
		"the most": "head -c 1048576 /dev/zero",
	} {
		b := Binary{Path: writeBinary(t, "containerd-shim-flood-v1", "#!/bin/sh\n"+script+"\n")}
		for command, ask := range run {
			err := ask(b)
			require.True(t, errdefs.IsInvalidArgument(err), "%s, %s: %v", command, name, err)
			require.Equal(t, name != "the most", errors.Is(err, ErrOutputTooLong), "%s, %s: %v", command, name, err)
			require.Less(t, len(err.Error()), 2048)
		}
	}
	lt.requireNothingLeft()
}
