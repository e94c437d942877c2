// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/shimclient"
)

// TestWakes: a Wait is woken by the exit of its process alone, and forgotten when it is through.
func TestWakes(t *testing.T) {
	l, _ := running(t)
	woken := make(map[string]int)
	register := func(id string) func() { return l.OnWake(id, func() { woken[id]++ }) }
	forgetInit, forgetExec, forgetOther := register(""), register("e1"), register("e2")
	news := l.News()
	l.LearnExecExit(l.ExecOf("e1"), exitOf(0, 1))
	require.Equal(t, map[string]int{"e1": 1}, woken)
	require.True(t, isClosed(news))
	require.False(t, isClosed(l.Exited()))
	l.LearnExit(exitOf(200, 2))
	require.Equal(t, map[string]int{"e1": 1, "": 1}, woken)
	require.True(t, isClosed(l.Exited()))
	forgetInit()
	forgetExec()
	forgetOther()
	l.mu.Lock()
	require.Empty(t, l.waiters)
	l.mu.Unlock()
	l.LearnDeath(exitOf(200, 255))
	require.Equal(t, map[string]int{"e1": 1, "": 1}, woken)
}

// TestSuccessorOfAnExec: what is asked of one exec is not recorded for the next under its id.
func TestSuccessorOfAnExec(t *testing.T) {
	l, _ := running(t)
	first := l.ExecOf("e1")
	require.True(t, first.IsKnown())
	l.ExecAdded("e1")
	e := l.LearnExecExit(first, bundle.Exit{Status: 7})
	require.EqualValues(t, 7, e.Status, "the caller has it all the same")
	require.False(t, e.At.IsZero())
	require.Nil(t, l.Exit("e1"))
	l.ExecDeleted(first, exitOf(201, 7))
	l.ForgetExec(first)
	require.Equal(t, map[string]*bundle.ExecState{"e1": {}}, l.Record().Execs)
	require.False(t, l.ExecOf("e2").IsKnown())
	l.ForgetExec(l.ExecOf("e2"))
}

// TestSavingOnce: what is written already is not written again, unless it is to be written elsewhere or is gone. All
// that is on record is compared, and what could not be written counts as not written.
func TestSavingOnce(t *testing.T) {
	l, k := running(t)
	onDisk(t, k)
	file := func() os.FileInfo {
		t.Helper()
		info, err := os.Stat(filepath.Join(k.bundle.Path, "shimyard.json"))
		require.NoError(t, err)
		return info
	}
	require.NoError(t, l.Persist())
	first := file()
	require.NoError(t, l.Persist())
	l.Save()
	require.True(t, os.SameFile(first, file()), "it was replaced by the same")

	require.NoError(t, os.RemoveAll(k.bundle.Path))
	made, err := k.bundle.Replace()
	require.NoError(t, err)
	require.True(t, made)
	require.NoError(t, l.Persist())
	_, err = k.bundle.ReadRecord()
	require.NoError(t, err, "its directory was replaced by an empty one")

	for name, change := range map[string]func(){
		"an exit": func() { l.LearnExit(exitOf(200, 5)) },
		"a pid":   func() { l.ExecStarted("e1", 300) },
		"deleted": func() { l.MarkDeleted() },
	} {
		before := file()
		change()
		require.NoError(t, l.Persist())
		require.False(t, os.SameFile(before, file()), name)
		written, err := k.bundle.ReadRecord()
		require.NoError(t, err)
		rec := l.Record()
		require.Equal(t, rec.Deleted, written.Deleted, name)
		require.Equal(t, rec.Task.Exit == nil, written.Task.Exit == nil, name)
		require.Equal(t, rec.Execs["e1"].Pid, written.Execs["e1"].Pid, name)
	}

	away := k.bundle.Path + ".away"
	require.NoError(t, os.Rename(k.bundle.Path, away))
	l.ExecStarted("e1", 301)
	require.Error(t, l.Persist())
	l.ExecStarted("e1", 300)
	require.NoError(t, os.Rename(away, k.bundle.Path))
	before := file()
	require.NoError(t, l.Persist())
	require.False(t, os.SameFile(before, file()), "an attempt has failed since")

	onDisk(t, k)
	require.NoError(t, l.Persist())
	_, err = k.bundle.ReadRecord()
	require.NoError(t, err, "another bundle")
}

// TestSaving: a record that cannot be written is tried again, one that is sealed is not written any more.
func TestSaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := running(t)
		l.Save() // there is no bundle yet
		layout := onDisk(t, k)
		l.Save()
		written, err := k.bundle.ReadRecord()
		require.NoError(t, err)
		require.EqualValues(t, 200, written.Task.Pid)

		require.NoError(t, os.Rename(k.bundle.Path, k.bundle.Path+".away"))
		l.LearnExit(exitOf(200, 5))
		require.Error(t, l.Persist())
		require.NoError(t, os.Rename(k.bundle.Path+".away", k.bundle.Path))
		time.Sleep(savePause)
		synctest.Wait()
		written, err = k.bundle.ReadRecord()
		require.NoError(t, err)
		require.EqualValues(t, 5, written.Task.Exit.Status)

		l.Seal()
		require.NoError(t, k.bundle.Remove())
		_, err = layout.Create("testing", "c1", bundle.CreateOptions{})
		require.NoError(t, err)
		l.MarkDeleted()
		_, err = k.bundle.ReadRecord()
		require.True(t, errdefs.IsNotFound(err), "nothing of the one is in the bundle of the next: %v", err)
	})
}

// TestSavingSoon writes once for all changes that come before the write begins.
func TestSavingSoon(t *testing.T) {
	l, k := running(t)
	onDisk(t, k)
	var writes []func()
	l.desk.Spawn = func(f func()) { writes = append(writes, f) }
	for range 3 {
		l.saveSoon()
	}
	require.Len(t, writes, 1)
	writes[0]()
	_, err := k.bundle.ReadRecord()
	require.NoError(t, err)
	l.saveSoon()
	require.Len(t, writes, 2)
}

// TestCopies: what the ledger hands out is not its own.
func TestCopies(t *testing.T) {
	l, _ := running(t)
	l.LearnExit(exitOf(200, 5))
	rec := l.Record()
	rec.Task.Exit.Status, rec.Execs["e1"].Pid = 6, 1
	l.Exit("").Status = 7
	require.EqualValues(t, 5, l.Exit("").Status)
	require.EqualValues(t, 201, l.Pid("e1"))
	l.Load(rec)
	rec.Task.Exit.Status = 8
	require.EqualValues(t, 6, l.Exit("").Status)
}

// TestPassage of an instance by each way, and of one that is given another shim after all.
func TestPassage(t *testing.T) {
	l, _ := newLedger(t)
	l.Begin("io.containerd.test.v1")
	require.Empty(t, l.Passage().Source())
	require.False(t, l.Passage().EarlierBoot)
	takeBack := l.GivenWarm("w1", 5)
	require.Equal(t, "warm", l.Passage().Source())
	takeBack()
	require.Empty(t, l.Passage().Warm)
	token := l.Launching("/bin/shim", []string{"pod"})
	require.Equal(t, token, l.Launching("/bin/shim", nil), "a second start is part of the same launch")
	l.RecordAnswer(7)
	self, err := shimclient.LookupProcess(os.Getpid())
	require.NoError(t, err)
	l.RecordShim(self)
	l.RecordShim(shimclient.ProcessID{})
	way := l.Passage()
	require.Equal(t, "start", way.Source())
	require.Equal(t, token, way.Token())
	require.EqualValues(t, 7, way.Answered())
	require.Equal(t, self, way.Shim)
	require.Equal(t, self, ProcessOf(ProcOf(self)))
	l.Attached(false, true)
	require.Equal(t, "join", l.Passage().Source())
	require.Zero(t, l.Passage().Answered(), "another's")

	rec := l.Record()
	rec.BootID = "another"
	l.Load(rec)
	require.True(t, l.Passage().EarlierBoot)
	require.Zero(t, l.Passage().Shim, "no process of then is one of now")
}

// TestPids are judged by the shim that tells them.
func TestPids(t *testing.T) {
	self, err := shimclient.LookupProcess(os.Getpid())
	require.NoError(t, err)
	parent, err := shimclient.LookupProcess(os.Getppid())
	require.NoError(t, err)
	pid := uint32(self.Pid)
	for name, c := range map[string]struct {
		shim  shimclient.ProcessID
		start uint64
		owned bool
	}{
		"it descends from the shim": {parent, self.StartTime, true},
		"it is the shim":            {self, self.StartTime, false},
		"the shim is not known":     {},
		"the shim is another":       {shim: shimclient.ProcessID{Pid: self.Pid + 1, StartTime: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			task := NewTask(pid, c.shim, runtime.IO{Stdin: "in"})
			require.Equal(t, &bundle.TaskState{Pid: pid, PidStart: c.start, PidOwned: c.owned, Stdin: "in"}, task)
			l, _ := newLedger(t)
			l.LearnPid(pid, c.shim)
			require.Equal(t, pid, l.Pid(""))
			require.Equal(t, c.owned, l.Init() == self)
			require.Equal(t, c.start != 0, l.InitMayLive())
			require.False(t, l.InitGone())
			require.True(t, l.Runs(self))
			l.LearnExit(exitOf(pid, 0))
			require.True(t, l.InitGone())
			require.Zero(t, l.Init())
		})
	}
}

// TestSeenStopped: what is answered once stays, until the exit is known.
func TestSeenStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := running(t)
		for _, id := range []string{"", "e1"} {
			_, first := l.StoppedAs(id, 3)
			time.Sleep(time.Second)
			status, again := l.StoppedAs(id, 3)
			require.Equal(t, first, again)
			require.EqualValues(t, 3, status)
		}
		require.True(t, l.StoppedUntimed())
		require.Equal(t, []string{"e1"}, l.PendingExecs())
		seen := l.Record().Task.Stopped
		l.LearnExit(bundle.Exit{Status: 4})
		status, at := l.StoppedAs("", 0)
		require.EqualValues(t, 4, status)
		require.Equal(t, seen, at)
		require.False(t, l.StoppedUntimed())
		require.Equal(t, time.Now().UTC(), l.SeenStopped("unknown"))
	})
}

// TestTwoStepsInPlaceOfOne: what goes wrong where the stage and the record are two steps, so that another's step comes
// between them. This is why the instance holds its lock over both; that it does is TestOneStep's.
func TestTwoStepsInPlaceOfOne(t *testing.T) {
	t.Run("an exit that is heard while the task is created", func(t *testing.T) {
		heard := func(steps ...func(*Ledger)) bool {
			l, _ := newLedger(t)
			for _, step := range steps {
				step(l)
			}
			return l.Exit("") != nil
		}
		create := func(l *Ledger) { l.Created(&bundle.TaskState{Pid: 200}) }
		hear := func(s life.State) func(*Ledger) { return func(l *Ledger) { l.HearExit(s, "", exitOf(200, 7)) } }
		require.True(t, heard(hear(life.Launching), create))
		require.True(t, heard(create, hear(life.Running)))
		require.False(t, heard(create, hear(life.Launching)), "lost: it is kept, and nothing asks for it any more")
	})
	t.Run("a deletion that is heard while the task is created", func(t *testing.T) {
		told := func(s life.State) bool {
			l, _ := newLedger(t)
			l.Created(&bundle.TaskState{Pid: 200})
			l.LearnExit(exitOf(200, 7))
			l.HearDelete(s, 200)
			return l.Exit("").DeleteTold
		}
		require.True(t, told(life.Running))
		require.False(t, told(life.Launching), "told a second time")
	})
	t.Run("one who speaks when a Delete claims the task", func(t *testing.T) {
		l, _ := running(t)
		end, ok := l.BeginSpeaking(life.Running)
		require.True(t, ok)
		silent := make(chan struct{})
		go func() { l.AwaitSilence(); close(silent) }()
		require.False(t, isClosed(silent))
		end()
		<-silent
		_, ok = l.BeginSpeaking(life.Deleting)
		require.False(t, ok)
		_, ok = l.BeginSpeaking(life.Running)
		require.True(t, ok, "with a stage from before the claim it speaks after the Delete has waited")
	})
	t.Run("a replay that gives up when a Delete fails", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			replays := func(steps ...func(*Ledger)) int32 {
				l, k := running(t)
				l.LearnExit(exitOf(200, 7))
				time.Sleep(InFlight)
				for _, step := range steps {
					step(l)
				}
				time.Sleep(InFlight)
				synctest.Wait()
				return k.replays.Load()
			}
			see := func(s life.State) func(*Ledger) { return func(l *Ledger) { l.ReplayDue(s) } }
			require.EqualValues(t, 2, replays(see(life.Deleting), (*Ledger).TellLater))
			require.EqualValues(t, 1, replays((*Ledger).TellLater, see(life.Running)))
			require.EqualValues(t, 1, replays((*Ledger).TellLater, see(life.Deleting)),
				"the replay has ended and none is begun: the exit is never told")
		})
	})
	t.Run("a death after the shim's answer", func(t *testing.T) {
		l, _ := newLedger(t)
		require.False(t, l.Fate().Created, "seen between the two, a task that runs is taken for one that never was")
		l.Answered()
		require.True(t, l.Fate().Created)
	})
}
