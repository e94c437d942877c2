// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// A launch that is found by its id leaves nothing of ours in the environment of what the shim runs.
func TestNamedStart(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{TraceEnv: []string{"OTEL_SERVICE_NAME"}})
	lt.name()
	require.True(t, lt.PassesOnID(lt.req.Binary))
	_, err := lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	lt.Await(shimtest.KindExec, "daemon", 1)
	for _, e := range append(lt.Find(shimtest.KindExec, "start"), lt.Find(shimtest.KindExec, "daemon")...) {
		for _, entry := range e.Env {
			require.False(t, strings.HasPrefix(entry, TokenEnv), entry)
		}
	}
	daemon := lt.Daemon(lt.req.ID)
	id, err := LookupProcess(daemon.Pid)
	require.NoError(t, err)
	require.Equal(t, []ProcessID{id}, byToken(t, lt.req.Token))
	require.NoError(t, lt.CheckNamed(lt.ctx, lt.req.Binary, lt.req.Token, id))
}

// Whatever becomes of a launch that is found by its id, all of it is ended: helpers and daemons in every stage.
func TestNamedStartEndedAtEachStage(t *testing.T) {
	for _, stage := range stages {
		for name, faults := range map[string]shimtest.StartFaults{
			"fails": {FailAt: stage, LeaveDaemon: true}, "dies": {DieAt: stage}, "hangs": {HangAt: stage},
		} {
			t.Run(name+" "+string(stage), func(t *testing.T) {
				lt := newLaunchTest(t, shimtest.Scenario{Start: faults})
				lt.name()
				ctx, cancel := context.WithCancel(lt.ctx)
				defer cancel()
				if name == "hangs" {
					go func() {
						defer cancel()
						lt.Await(shimtest.KindExec, "start", 1)
						if stage == shimtest.AfterFork || stage == shimtest.AfterReply {
							lt.Await(shimtest.KindExec, "daemon", 1)
						}
					}()
				}
				_, err := lt.Start(ctx, lt.req)
				require.Error(t, err)
				lt.requireNothingLeft()
			})
		}
	}
}

// A shim that does not do what its binary says is noticed, and no further launch of it relies on that.
func TestNamelessShim(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{Nameless: true})
	lt.name()
	require.True(t, lt.PassesOnID(lt.req.Binary))
	_, err := lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	lt.Await(shimtest.KindExec, "daemon", 1)
	id, err := LookupProcess(lt.Daemon(lt.req.ID).Pid)
	require.NoError(t, err)
	require.Equal(t, []ProcessID{id}, byToken(t, lt.req.Token), "it has the id on its command line")
	require.True(t, errdefs.IsFailedPrecondition(lt.CheckNamed(lt.ctx, lt.req.Binary, lt.req.Token, id)))
	require.False(t, lt.PassesOnID(lt.req.Binary))

	again := lt.req
	again.ID, again.Token = "c1", NewToken()
	_, err = lt.Start(lt.ctx, again)
	require.NoError(t, err)
	require.False(t, lt.PassesOnID(lt.req.Binary), "another launch does not make it forgotten")
	require.NoError(t, EndLaunch(lt.ctx, again.Token, nil))
	lt.RemoveSockets("ns", []string{"c1"})
}

// What says the id is no process of the launch yet.
func TestProcessesOfANamedLaunch(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	require.NoError(t, err)
	shell := func(args ...string) *exec.Cmd {
		cmd := exec.Command("sh", append([]string{"-c", "read x"}, args...)...)
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		t.Cleanup(func() { stdin.Close() })
		return cmd
	}
	const name = "_0123456789"
	token := NamedToken(name)
	named := exec.Command(sleep, "1000")
	named.Env = append(os.Environ(), CarrierEnv(token))
	want := []*exec.Cmd{
		shimtest.Child(t, named), shimtest.Child(t, shell("shim", "-namespace", "ns", "-id", name)),
		shimtest.Child(t, shell("shim", "-namespace", "ns", "-address", "a", "-id", name, "start")),
	}
	longer := exec.Command(sleep, "1000")
	longer.Env = append(os.Environ(), CarrierEnv(token)+"0")
	other := exec.Command(sleep, "1000")
	other.Env = append(os.Environ(), "ID="+name, TokenEnv+"="+token)
	shimtest.Child(t, longer)
	shimtest.Child(t, other)
	shimtest.Child(t, shell("grep", name))
	shimtest.Child(t, shell("grep", "-id", name))
	shimtest.Child(t, shell("shim", "-namespace", "ns", "-id", name+"0"))
	shimtest.Child(t, shell("shim", "-namespace", name, "-id"))
	eventually(t, func() bool { return len(byToken(t, token)) == len(want) }, "they run")
	for _, cmd := range want {
		id, err := LookupProcess(cmd.Process.Pid)
		require.NoError(t, err)
		require.Contains(t, byToken(t, token), id)
	}
	require.NoError(t, EndLaunch(t.Context(), token, nil))
	for _, cmd := range want {
		require.Error(t, cmd.Wait())
	}
}

func TestPassesOnID(t *testing.T) {
	l := NewLauncher(LauncherConfig{})
	for content, want := range map[string]bool{
		"\x7fELF" + serviceName:          true,
		"\x7fELF OTEL_SERVICE_NAME= ...": false,
		"#!/bin/sh\n" + serviceName:      false,
	} {
		require.Equal(t, want, l.PassesOnID(Binary{Path: writeBinary(t, "containerd-shim-x-v1", content)}), content)
	}
	require.False(t, l.PassesOnID(Binary{Path: filepath.Join(t.TempDir(), "missing")}))
	for _, token := range []string{"id:", "id:-1f00", "id:x-123456789"} {
		require.True(t, errdefs.IsInvalidArgument(checkToken(token)), token)
	}
	_, err := l.Start(t.Context(), StartRequest{
		Binary: Binary{Path: "/x"}, Namespace: "ns", ID: "c1", Bundle: "/b", Token: NamedToken("_0123456789"),
	})
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
}
