// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

func TestStartProtocols(t *testing.T) {
	script, unmarked := shimtest.WithScript(), shimtest.WithoutMarker()
	for _, tc := range []struct {
		name     string
		scenario shimtest.Scenario
		opts     []shimtest.InstallOption
		stdins   []string // of the first start; the second gets the last of them
	}{
		{"new", shimtest.Scenario{}, nil, []string{"bootstrap"}},
		{"new, packed into a script", shimtest.Scenario{}, []shimtest.InstallOption{script},
			[]string{"legacy", "bootstrap"}},
		{"new, name hidden", shimtest.Scenario{}, []shimtest.InstallOption{unmarked}, []string{"legacy", "bootstrap"}},
		{"1.6", shimtest.Scenario{Generation: shimtest.Legacy}, []shimtest.InstallOption{unmarked}, []string{"legacy"}},
		{"1.6 with the name", shimtest.Scenario{Generation: shimtest.Legacy}, nil, []string{"bootstrap", "legacy"}},
		{"1.7", shimtest.Scenario{Generation: shimtest.Dropping}, []shimtest.InstallOption{unmarked},
			[]string{"legacy"}},
		{"1.7 in a script", shimtest.Scenario{Generation: shimtest.Dropping}, []shimtest.InstallOption{script},
			[]string{"legacy"}},
		{"v1 name", shimtest.Scenario{Generation: shimtest.Legacy},
			[]shimtest.InstallOption{shimtest.WithName("containerd-shim-runhcs-v1")}, []string{"legacy"}},
		{"leaks when it refuses", shimtest.Scenario{Generation: shimtest.Legacy,
			Start: shimtest.StartFaults{LeakOnRefusal: true}},
			nil, []string{"bootstrap", "legacy"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lt := newLaunchTest(t, tc.scenario, tc.opts...)
			lt.req.Options = withOptions(t)
			_, err := lt.Start(lt.ctx, lt.req)
			require.NoError(t, err)
			require.Equal(t, tc.stdins, lt.stdins())
			starts := lt.Find(shimtest.KindExec, "start")
			require.Len(t, starts[len(starts)-1].Applied, 1, "the options were lost")
			require.Len(t, lt.Procs(), 1, "a daemon of the first try is left")
			lt.end()

			// The answer is known from now on.
			lt.req.Token = NewToken()
			_, err = lt.Start(lt.ctx, lt.req)
			require.NoError(t, err)
			require.Equal(t, append(tc.stdins, tc.stdins[len(tc.stdins)-1]), lt.stdins())
		})
	}
}

func TestStartLegacyWithoutOptions(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{Generation: shimtest.Legacy}, shimtest.WithoutMarker())
	res, err := lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	require.EqualValues(t, 2, res.Version)
	require.Equal(t, []string{"none"}, lt.stdins())
}

func TestStartWithConfiguredProtocol(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{})
	lt.req.Options, lt.req.Protocol = withOptions(t), ProtocolLegacy
	_, err := lt.Start(lt.ctx, lt.req)
	require.ErrorIs(t, err, ErrProtocolRefused)
	require.ErrorContains(t, err, "deprecated API")
	require.Equal(t, []string{"legacy"}, lt.stdins())
	lt.requireNothingLeft()

	lt.req.Protocol = ProtocolBootstrap
	_, err = lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
}

// An upgrade to a binary that speaks the other protocol needs no second guess.
func TestStartAfterUpgrade(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{}, shimtest.WithoutMarker())
	_, err := lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	lt.end()
	lt.Replace()
	_, err = lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	require.Equal(t, []string{"none", "bootstrap", "bootstrap"}, lt.stdins())
}

// A failure that is no refusal is not tried again, whatever the binary told.
func TestStartFailureIsNotRetried(t *testing.T) {
	faults := shimtest.StartFaults{FailAt: shimtest.BeforeFork,
		FailText: "failed to load cgroup /c: no such file or directory"}
	for name, opt := range map[string]shimtest.InstallOption{
		"native": shimtest.WithName("containerd-shim-fake-v1"), "script": shimtest.WithScript(),
	} {
		t.Run(name, func(t *testing.T) {
			lt := newLaunchTest(t, shimtest.Scenario{Generation: shimtest.Lenient, Start: faults}, opt)
			_, err := lt.Start(lt.ctx, lt.req)
			require.ErrorContains(t, err, faults.FailText)
			require.NotErrorIs(t, err, ErrProtocolRefused)
			require.Len(t, lt.stdins(), 1)
			lt.requireNothingLeft()
		})
	}
}

// A script tells nothing, so its failing without a word may be a refusal; a second one in the other protocol's words
// is told with the first.
func TestStartOfSilentScript(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{})
	lt.req.Options = withOptions(t)
	lt.req.Binary.Path = writeBinary(t, "containerd-shim-quiet-v1",
		"#!/bin/sh\nif grep -q daemon.sock; then printf unix:///run/s/x; else exit 3; fi\n")
	res, err := lt.Start(lt.ctx, lt.req)
	require.NoError(t, err)
	require.Equal(t, "unix:///run/s/x", res.Address)

	lt.req.Binary.Path = writeBinary(t, "containerd-shim-picky-v1", "#!/bin/sh\n"+
		"if grep -q daemon.sock; then echo type with url x: not found; else echo deprecated API >&2; fi\nexit 1\n")
	_, err = lt.Start(lt.ctx, lt.req)
	require.ErrorIs(t, err, ErrProtocolRefused)
	require.ErrorContains(t, err, "with the legacy protocol: deprecated API")
	require.ErrorContains(t, err, "with the bootstrap protocol: type with url x")

	lt.req.Binary.Path = writeBinary(t, "containerd-shim-crash-v1", "#!/bin/sh\necho >>$0.runs\nkill -SEGV $$\n")
	_, err = lt.Start(lt.ctx, lt.req)
	require.ErrorContains(t, err, "segmentation fault")
	runs, err := os.ReadFile(lt.req.Binary.Path + ".runs")
	require.NoError(t, err)
	require.Len(t, runs, 1, "a crash is no refusal")
}

// What is behind a script is replaced and the script is not: the options get through whatever was learnt before.
func TestStartProtocolOutlivesNoShim(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{}, shimtest.WithScript())
	lt.req.Options = withOptions(t)
	start := func() {
		t.Helper()
		lt.req.Token = NewToken()
		_, err := lt.Start(lt.ctx, lt.req)
		require.NoError(t, err)
		starts := lt.Find(shimtest.KindExec, "start")
		require.Len(t, starts[len(starts)-1].Applied, 1, "the options were lost")
		require.Len(t, lt.Procs(), 1, "a daemon of another try is left")
		lt.end()
	}
	start()
	start()
	require.Equal(t, []string{"legacy", "bootstrap", "bootstrap"}, lt.stdins())
	lt.Update(func(s *shimtest.Scenario) { s.Generation = shimtest.Dropping })
	start()
	start()
	require.Equal(t, []string{"bootstrap", "legacy", "legacy"}, lt.stdins()[3:])
	lt.Update(func(s *shimtest.Scenario) { s.Generation = shimtest.Bootstrap })
	start()
	require.Equal(t, []string{"legacy", "bootstrap"}, lt.stdins()[6:])
}

// One that speaks bootstrap and has always answered in an older form is started once.
func TestStartProtocolOfOddReply(t *testing.T) {
	lt := newLaunchTest(t, shimtest.Scenario{Reply: shimtest.Reply{Format: shimtest.JSON}}, shimtest.WithScript())
	for range 3 {
		lt.req.Token = NewToken()
		_, err := lt.Start(lt.ctx, lt.req)
		require.NoError(t, err)
		lt.end()
	}
	require.Equal(t, []string{"none", "bootstrap", "bootstrap", "bootstrap"}, lt.stdins())
}
