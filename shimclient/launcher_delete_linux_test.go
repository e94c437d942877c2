// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

func TestDelete(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{TraceEnv: []string{"EXTRA", TokenEnv},
		Delete: shimtest.DeleteFaults{Stderr: "odd\n"}})
	req := DeleteRequest{Binary: lt.req.Binary, Namespace: "ns", ID: "c1", Bundle: lt.req.Bundle}
	res, err := lt.Delete(lt.ctx, req)
	require.NoError(t, err)
	require.NotZero(t, res.Status)
	require.False(t, res.ExitedAt.IsZero())
	e := lt.Find(shimtest.KindExec, "delete")[0]
	self, err := os.Executable()
	require.NoError(t, err)
	require.Equal(t, []string{"-namespace", "ns", "-address", "/run/daemon.sock", "-publish-binary", self, "-id", "c1",
		"-bundle", lt.req.Bundle, "delete"}, e.Argv[1:])
	require.Equal(t, lt.req.Bundle, e.Cwd)
	for _, want := range []string{"EXTRA=1", "GOMAXPROCS=3", "NAMESPACE=ns", "MAX_SHIM_VERSION=2",
		"GRPC_ADDRESS=/run/daemon.sock"} {
		require.Contains(t, e.Env, want)
	}
	require.False(t, slices.ContainsFunc(e.Env, func(s string) bool { return strings.HasPrefix(s, TokenEnv) }))
	require.Contains(t, lt.log.String(), "odd")

	lt.Update(func(s *shimtest.Scenario) { s.Delete = shimtest.DeleteFaults{Fail: -1, FailText: "runc is gone"} })
	_, err = lt.Delete(lt.ctx, req)
	require.ErrorContains(t, err, "runc is gone: exit status 1")
	lt.Update(func(s *shimtest.Scenario) { s.Delete = shimtest.DeleteFaults{Garbage: true} })
	_, err = lt.Delete(lt.ctx, req)
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	lt.Update(func(s *shimtest.Scenario) { s.Delete = shimtest.DeleteFaults{Mute: true} })
	_, err = lt.Delete(lt.ctx, req)
	require.ErrorIs(t, err, ErrDeleteReply, "an empty reply is no exit status 0")
	_, err = lt.Delete(lt.ctx, DeleteRequest{Binary: req.Binary, ID: "c1", Bundle: req.Bundle})
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)

	// The pid -1, as some shims have it; and an answer without a time.
	req.Binary.Path = writeBinary(t, "containerd-shim-minus-v1",
		"#!/bin/sh\nprintf '\\010\\377\\377\\377\\377\\017\\020\\211\\001'\n")
	res, err = lt.Delete(lt.ctx, req)
	require.NoError(t, err)
	require.Equal(t, &DeleteResult{Status: 137}, res)
	req.Namespace = ""
	_, err = lt.Delete(lt.ctx, req)
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
}

func TestDeleteIsCancelled(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{Delete: shimtest.DeleteFaults{Hang: true}})
	ctx, cancel := context.WithCancel(lt.ctx)
	go func() {
		defer cancel()
		lt.Await(shimtest.KindExec, "delete", 1)
	}()
	_, err := lt.Delete(ctx, DeleteRequest{Binary: lt.req.Binary, Namespace: "ns", ID: "c1", Bundle: lt.req.Bundle})
	require.True(t, errdefs.IsCanceled(err), "%v", err)
	lt.requireNothingLeft()
}

func TestInfo(t *testing.T) {
	yes := true
	lt := newLaunchTest(t, shimtest.Scenario{Info: shimtest.InfoAnswer{IDMap: &yes,
		Annotations: map[string]string{"a": "b"}}})
	info, err := lt.Info(lt.ctx, lt.req.Binary, withOptions(t))
	require.NoError(t, err)
	require.NotEmpty(t, info.Name)
	require.Equal(t, "b", info.Annotations["a"])
	require.NotNil(t, info.Features)
	e := lt.Find(shimtest.KindExec, "info")[0]
	require.Equal(t, []string{"-info"}, e.Argv[1:])
	require.NotZero(t, e.StdinLen)

	_, err = lt.Info(lt.ctx, lt.req.Binary, nil)
	require.NoError(t, err)
	require.Zero(t, lt.Find(shimtest.KindExec, "info")[1].StdinLen)

	lt.Update(func(s *shimtest.Scenario) { s.Info.Fail = "no runc" })
	_, err = lt.Info(lt.ctx, lt.req.Binary, nil)
	require.ErrorContains(t, err, "no runc")

	lt.Update(func(s *shimtest.Scenario) { s.Info = shimtest.InfoAnswer{Hang: true} })
	ctx, cancel := context.WithCancel(lt.ctx)
	go func() {
		defer cancel()
		lt.Await(shimtest.KindExec, "info", 4)
	}()
	_, err = lt.Info(ctx, lt.req.Binary, nil)
	require.True(t, errdefs.IsCanceled(err), "%v", err)
	lt.requireNothingLeft()
	_, err = lt.Info(ctx, Binary{Path: "relative"}, nil)
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
}
