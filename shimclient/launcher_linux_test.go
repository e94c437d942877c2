// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// launchTest is a fake shim, a launcher, and a bundle to start it in.
type launchTest struct {
	*shimtest.Shim
	*Launcher
	t   *testing.T
	req StartRequest
	ctx context.Context
	log *bytes.Buffer // what went to the log; read it only when nothing runs
}

// newLaunchTest makes them, and checks after the test that nothing is left.
func newLaunchTest(t *testing.T, s shimtest.Scenario, opts ...shimtest.InstallOption) *launchTest {
	t.Helper()
	noLaunchLeaks(t)
	lt := &launchTest{t: t, Shim: shimtest.Install(t, s, opts...), log: &bytes.Buffer{}}
	lt.Launcher = NewLauncher(LauncherConfig{
		GRPCAddress: "/run/daemon.sock", TTRPCAddress: "/run/daemon.sock.ttrpc", SocketDir: filepath.Join(lt.Home, "s"),
		Env: []string{"EXTRA=1", "GOMAXPROCS=3"},
	})
	bundle := filepath.Join(t.TempDir(), "c1")
	require.NoError(t, os.Mkdir(bundle, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(bundle, "config.json"), []byte("{}"), 0o600))
	b, err := NewResolver(nil).Resolve(lt.Path)
	require.NoError(t, err)
	lt.req = StartRequest{Binary: b, Namespace: "ns", ID: "c1", Bundle: bundle, Token: NewToken()}
	logger := logrus.New()
	logger.SetOutput(lt.log)
	lt.ctx = log.WithLogger(testContext(t), logrus.NewEntry(logger))
	t.Cleanup(lt.end)
	return lt
}

// end ends what a successful start has left running.
func (lt *launchTest) end() {
	require.NoError(lt.t, EndLaunch(context.Background(), lt.req.Token, nil))
	lt.RemoveSockets("ns", []string{lt.req.ID})
}

// name makes the launch one that is found by its id.
func (lt *launchTest) name() {
	lt.req.ID = "_" + strings.ToLower(rand.Text())
	lt.req.Token = NamedToken(lt.req.ID)
}

// requireNothingLeft is what a failed start promises when it returns.
func (lt *launchTest) requireNothingLeft() {
	lt.t.Helper()
	require.Empty(lt.t, lt.Procs())
	require.Empty(lt.t, byToken(lt.t, lt.req.Token))
	require.Empty(lt.t, lt.Sockets())
}

// stdins are the kinds of stdin that the starts got, in order.
func (lt *launchTest) stdins() []string {
	var all []string
	for _, e := range lt.Find(shimtest.KindExec, "start") {
		all = append(all, e.Stdin)
	}
	return all
}

func withOptions(t *testing.T) *anypb.Any {
	t.Helper()
	o, err := anypb.New(&options.Options{ShimCgroup: "/c"})
	require.NoError(t, err)
	// The type URL that containerd's typeurl writes has no host.
	o.TypeUrl = strings.TrimPrefix(o.TypeUrl, "type.googleapis.com/")
	return o
}

func TestStartContract(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{TraceEnv: []string{"EXTRA", "INHERITED", TokenEnv}})
	t.Setenv("INHERITED", "yes")
	t.Setenv(TokenEnv, "token-of-the-daemon-itself")
	lt.req.Options = withOptions(t)
	res, err := lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	require.EqualValues(t, 3, res.Version)
	require.Equal(t, "ttrpc", res.Protocol)
	require.Equal(t, []string{strings.TrimPrefix(res.Address, "unix://")}, lt.Sockets())

	e := lt.Find(shimtest.KindExec, "start")[0]
	self, err := os.Executable()
	require.NoError(t, err)
	require.Equal(t, []string{"-namespace", "ns", "-address", "/run/daemon.sock", "-publish-binary", self, "-id", "c1",
		"start"}, e.Argv[1:])
	require.Equal(t, lt.req.Bundle, e.Cwd)
	require.Equal(t, "bootstrap", e.Stdin)
	require.Len(t, e.Applied, 1)
	for _, want := range []string{
		"GOMAXPROCS=3", "MAX_SHIM_VERSION=2", "TTRPC_ADDRESS=/run/daemon.sock.ttrpc", "GRPC_ADDRESS=/run/daemon.sock",
		"NAMESPACE=ns", "EXTRA=1", "INHERITED=yes", TokenEnv + "=" + lt.req.Token,
	} {
		require.Contains(t, e.Env, want)
	}
	for _, want := range []string{`"instanceId":"c1"`, `"namespace":"ns"`, `"containerdBinary"`, `"socketDir"`} {
		require.Contains(t, strings.ReplaceAll(string(e.Params), " ", ""), want)
	}
	lt.Await(shimtest.KindExec, "daemon", 1)
	daemon := lt.Daemon("c1")
	carriers := byToken(t, lt.req.Token)
	require.Len(t, carriers, 1, "the daemon carries the token")
	require.Equal(t, daemon.Pid, carriers[0].Pid)
	id, err := VerifyShim(lt.t.Context(), daemon.Pid, lt.req.Binary, "")
	require.NoError(t, err)
	require.Equal(t, daemon.Start, id.StartTime)
}

func TestStartTellsDebug(t *testing.T) {
	level := log.GetLevel()
	require.NoError(t, log.SetLevel("debug"))
	t.Cleanup(func() { _ = log.SetLevel(level.String()) })
	lt := newLaunchTest(t, shimtest.Scenario{})
	_, err := lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	e := lt.Find(shimtest.KindExec, "start")[0]
	require.Equal(t, []string{"-id", "c1", "-debug", "start"}, e.Argv[len(e.Argv)-4:])
	require.Contains(t, string(e.Params), "LOG_LEVEL_DEBUG")
	require.Len(t, lt.Sockets(), 2)
}

func TestStartReplies(t *testing.T) {
	for _, format := range []shimtest.Format{shimtest.Protobuf, shimtest.JSON, shimtest.Address} {
		for _, stderr := range []string{"", "WARN: something is odd\n"} {
			t.Run(fmt.Sprintf("%s,noise=%v", format, stderr != ""), func(t *testing.T) {
				lt := newLaunchTest(t, shimtest.Scenario{
					Reply: shimtest.Reply{Format: format}, Start: shimtest.StartFaults{Stderr: stderr},
				})
				res, err := lt.Start(lt.ctx, lt.req)
				require.NoError(t, err)
				require.Equal(t, []string{strings.TrimPrefix(res.Address, "unix://")}, lt.Sockets())
				if stderr == "" {
					require.Empty(t, lt.log.String())
					return
				}
				for _, want := range []string{"WARN: something is odd", "id=c1", "namespace=ns"} {
					require.Contains(t, lt.log.String(), want)
				}
			})
		}
	}
}

func TestStartBadReplies(t *testing.T) {
	for name, tc := range map[string]struct {
		reply shimtest.Reply
		is    func(error) bool
		says  string
	}{
		"garbage": {shimtest.Reply{Format: shimtest.Garbage}, errdefs.IsInvalidArgument,
			"neither protobuf nor JSON"},
		"empty":       {shimtest.Reply{Format: shimtest.Empty}, errdefs.IsInvalidArgument, "answered nothing"},
		"huge":        {shimtest.Reply{Format: shimtest.Huge}, errdefs.IsInvalidArgument, "1 MiB"},
		"no address":  {shimtest.Reply{Omit: []string{"address"}}, errdefs.IsInvalidArgument, "no address"},
		"no protocol": {shimtest.Reply{Omit: []string{"protocol"}}, errdefs.IsInvalidArgument, "no protocol"},
		"no version":  {shimtest.Reply{Omit: []string{"version"}}, errdefs.IsInvalidArgument, "version is 0"},
		"version 9":   {shimtest.Reply{Version: 9}, errdefs.IsNotImplemented, "version is 9"},
	} {
		t.Run(name, func(t *testing.T) {
			lt := newLaunchTest(t, shimtest.Scenario{Reply: tc.reply,
				Start: shimtest.StartFaults{Stderr: "my last words\n"}})
			_, err := lt.Start(lt.ctx, lt.req)
			require.True(t, tc.is(err), "%v", err)
			require.ErrorContains(t, err, tc.says)
			require.ErrorContains(t, err, "my last words")
			require.Less(t, len(err.Error()), 2048)
			require.Len(t, lt.stdins(), 1)
			lt.requireNothingLeft()
		})
	}
}

// A shim that does not get to answer has left its address in the bundle.
func TestStartAnsweredByTheBundle(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{Reply: shimtest.Reply{Format: shimtest.Empty}})
	lt.req.Addresses = func() []string { return lt.Sockets() }
	res, err := lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	require.Equal(t, []string{strings.TrimPrefix(res.Address, "unix://")}, lt.Sockets())
	require.EqualValues(t, 2, res.Version)
	require.Equal(t, "ttrpc", res.Protocol)
	require.Len(t, lt.stdins(), 1)
}

// A daemon that keeps the helper's stdout and stderr neither holds up the start nor loses its reply.
func TestStartWithLeakedStdout(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{Start: shimtest.StartFaults{InheritStdout: true, Stderr: "noise\n"}})
	for i := range 5 {
		res, err := lt.Start(lt.ctx, lt.req)
		require.NoError(t, err)
		require.NotEmpty(t, res.Address)
		lt.Await(shimtest.KindExec, "daemon", i+1)
		lt.Daemon("c1")
		lt.end()
	}
	require.Equal(t, 5, strings.Count(lt.log.String(), "noise"))
}

// A daemon that keeps the helper's stdout and stderr may write to them when the helper is long gone, as much as it
// likes.
func TestStartWithDaemonThatWritesLater(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{})
	lt.req.Binary.Path = writeBinary(t, "containerd-shim-late-v1", `#!/bin/sh
(
	while [ ! -e go ]; do sleep 0.01; done
	for n in 1 2 3; do echo word; echo word >&2; done
	head -c 900000 /dev/zero >&2
	: >survived
	sleep 1000
) &
printf '{"version":3,"protocol":"ttrpc","address":"unix:///a"}'
`)
	_, err := lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(lt.req.Bundle, "go"), nil, 0o600))
	eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(lt.req.Bundle, "survived"))
		return err == nil
	}, "the daemon goes on after its first word")
}

// The reply may fill the pipe, and the helper be gone before any of it is read; somebody else still holds the pipe.
func TestStartWithLongReplyAndLeak(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{})
	lt.req.Binary.Path = writeBinary(t, "containerd-shim-long-v1", `#!/bin/sh
sleep 1000 &
printf '{"version":3,"protocol":"ttrpc","address":"unix:///a","metadata":{"k":"'
head -c 900000 /dev/zero | tr '\0' x
printf '"}}'
`)
	res, err := lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	require.Len(t, res.Metadata["k"], 900000)
}

func TestStartWaitsForItsTurn(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{})
	lt.limiter = newLimiter(1, time.Hour)
	mine, turn, err := lt.TakeTurn(lt.ctx)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(lt.ctx)
	failed := make(chan error, 1)
	go func() {
		_, err := lt.Start(ctx, lt.req)
		failed <- err
	}()
	cancel()
	err = <-failed
	require.True(t, errdefs.IsCanceled(err), "%v", err)
	require.Empty(t, lt.Find(shimtest.KindExec, ""))
	again, none, err := lt.TakeTurn(mine)
	require.NoError(t, err)
	require.Nil(t, none)
	_, err = lt.Start(again, lt.req)
	require.NoError(t, err, "the turn is the caller's")
	lt.end()
	turn.End()
	_, err = lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
}

// Helpers that hang give their turn to others after a while.
func TestHungStartsDoNotBlockOthers(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{Start: shimtest.StartFaults{HangAt: shimtest.AtEntry}})
	lt.limiter = newLimiter(1, 10*time.Millisecond)
	ctx, cancel := context.WithCancel(lt.ctx)
	hung := make(chan error, 1)
	go func() {
		_, err := lt.Start(ctx, lt.req)
		hung <- err
	}()
	lt.Await(shimtest.KindExec, "start", 1)
	// The second gets its turn, which shows by its getting as far as to fail.
	second := lt.req
	second.Token, second.Binary.Path = NewToken(), lt.Path+"-missing"
	_, err := lt.Start(lt.ctx, second)
	require.ErrorIs(t, err, os.ErrNotExist)
	cancel()
	require.Error(t, <-hung)
	lt.requireNothingLeft()
}

func TestStartRequestIsChecked(t *testing.T) {
	l := NewLauncher(LauncherConfig{})
	good := StartRequest{Binary: Binary{Path: "/x"}, Namespace: "ns", ID: "id", Bundle: "/b", Token: NewToken()}
	for name, change := range map[string]func(*StartRequest){
		"binary":    func(r *StartRequest) { r.Binary.Path = "relative" },
		"namespace": func(r *StartRequest) { r.Namespace = "" },
		"id":        func(r *StartRequest) { r.ID = "" },
		"bundle":    func(r *StartRequest) { r.Bundle = "" },
		"token":     func(r *StartRequest) { r.Token = "" },
		"protocol":  func(r *StartRequest) { r.Protocol = "x" },
	} {
		r := good
		change(&r)
		_, err := l.Start(t.Context(), r)
		require.True(t, errdefs.IsInvalidArgument(err), "%s: %v", name, err)
	}
}

func TestStartNamesWhatIsMissing(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{})
	gone := lt.req
	gone.Bundle += "-gone"
	_, err := lt.Start(lt.ctx, gone)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "stat "+gone.Bundle)
	gone = lt.req
	gone.Binary.Path += "-gone"
	_, err = lt.Start(lt.ctx, gone)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "fork/exec "+gone.Binary.Path)
}

// TestAdmitRightBefore: what may be started is asked when it is, and not only before the wait for a turn.
func TestAdmitRightBefore(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{})
	policy, err := NewPolicy(nil, CheckRefuse)
	require.NoError(t, err)
	lt.config.Admit = policy.Admit
	require.NoError(t, policy.Admit(lt.ctx, lt.req.Binary))
	_, err = lt.Info(lt.ctx, lt.req.Binary, nil)
	require.NoError(t, err)
	execs := len(lt.Find(shimtest.KindExec, ""))

	lt.limiter = newLimiter(1, time.Hour)
	_, turn, err := lt.TakeTurn(lt.ctx)
	require.NoError(t, err)
	failed := make(chan error, 1)
	go func() {
		_, err := lt.Start(lt.ctx, lt.req)
		failed <- err
	}()
	eventually(t, func() bool { return lt.Waiting() == 1 }, "the start waits for its turn")
	require.NoError(t, os.Chmod(lt.Home, 0o777))
	turn.End()
	err = <-failed
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	_, err = lt.Info(lt.ctx, lt.req.Binary, nil)
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	require.Len(t, lt.Find(shimtest.KindExec, ""), execs)

	_, err = lt.Delete(lt.ctx, DeleteRequest{Binary: lt.req.Binary, Namespace: "ns", ID: "c1", Bundle: lt.req.Bundle})
	require.NoError(t, err, "a shim that runs already is cleaned up after")
}
