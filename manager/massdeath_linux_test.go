// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient"
)

// massEnv says how many shims die in TestMassDeath.
const massEnv = "SHIMYARD_MASS_DEATH"

// slowDelete is a shim of which only `delete` is there. It takes a while, notes when it begins and ends, fails the
// first time for ids that end in 0, and answers with the reply beside it.
const slowDelete = `#!/bin/sh
home=${0%/*}
echo begin >>$home/log
sleep 0.02
echo end >>$home/log
case $PWD in *0) [ -e failed ] || { : >failed; exit 1; } ;; esac
cat $home/reply
`

// TestMassDeath: the deletes of shims that die together are run some at a time, all exits are told as they were, and
// nothing is left.
func TestMassDeath(t *testing.T) {
	count := 100
	if v := os.Getenv(massEnv); v != "" {
		var err error
		count, err = strconv.Atoi(v)
		require.NoError(t, err)
	}
	home := t.TempDir()
	reply, err := proto.Marshal(&taskapi.DeleteResponse{Pid: 7, ExitStatus: 137})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(home, "reply"), reply, 0o600))
	shim := filepath.Join(home, "containerd-shim-slow-v1")
	require.NoError(t, os.WriteFile(shim, []byte(slowDelete), 0o755))
	layout := bundle.Layout{State: filepath.Join(home, "state"), Root: filepath.Join(home, "root")}
	require.NoError(t, layout.Init(0o711))

	m := memManager(t)
	var all []*Instance
	for n := range count {
		i := newInstance(m, layout, life.Task, testNamespace, fmt.Sprintf("c%d", n), life.Running)
		i.bundle, err = layout.Create(testNamespace, i.id, bundle.CreateOptions{})
		require.NoError(t, err)
		i.binary = shimclient.Binary{Runtime: shim, Path: shim}
		i.ledger.Load(&bundle.Record{Created: true, Task: &bundle.TaskState{Status: "RUNNING"}})
		m.instances[i.key()] = i
		all = append(all, i)
	}
	begin := time.Now()
	for _, i := range all {
		require.True(t, i.onDeath())
		m.spawn(i.cleanUpDead)
	}
	for _, i := range all {
		for st, changed := i.watch(); st != life.Gone; st, changed = i.watch() {
			<-changed
		}
		require.Equal(t, uint32(137), i.ledger.Exit("").Status, i.id)
	}
	most := mostAtOnce(t, filepath.Join(home, "log"))
	t.Logf("%d deaths, at most %d deletes at once, %s", count, most, time.Since(begin).Round(time.Millisecond))
	require.LessOrEqual(t, most, 2*goruntime.GOMAXPROCS(0))
	for _, dir := range []string{"state", "root"} {
		left, err := filepath.Glob(filepath.Join(home, dir, testNamespace, "*"))
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

// mostAtOnce is how many had begun and not ended at the most.
func mostAtOnce(t *testing.T, log string) int {
	t.Helper()
	data, err := os.ReadFile(log)
	require.NoError(t, err)
	running, most := 0, 0
	for _, line := range strings.Fields(string(data)) {
		if line == "begin" {
			running++
		} else {
			running--
		}
		most = max(most, running)
	}
	return most
}
