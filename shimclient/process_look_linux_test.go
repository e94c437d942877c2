// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/shimclient/shimtest"
)

// dyingFUSE mounts a file system that answers nothing any more once its server was told to die.
func dyingFUSE(t *testing.T) (dir string, die func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount")
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no FUSE: %v", err)
	}
	dir = t.TempDir()
	err = unix.Mount("fuse", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0", fd))
	if err != nil {
		_ = unix.Close(fd)
		t.Skipf("cannot mount a FUSE file system: %v", err)
	}
	dev := os.NewFile(uintptr(fd), "/dev/fuse") // it cannot be polled before it is mounted
	done := make(chan struct{})
	var dead atomic.Bool
	go func() {
		defer close(done)
		serveFUSE(dev, &dead)
	}()
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = dev.Close() // ends all that waits for an answer
		<-done
	})
	return dir, func() { dead.Store(true) }
}

func serveFUSE(dev *os.File, dead *atomic.Bool) {
	const (
		headerIn, headerOut    = 40, 16
		opGetattr, opInit      = 3, 26
		initOut, attrOut, mode = 64, 104, 92
	)
	buf := make([]byte, 1<<17)
	for {
		n, err := dev.Read(buf)
		if err != nil {
			return
		}
		if n < headerIn {
			continue
		}
		if dead.Load() {
			continue
		}
		op, unique := binary.NativeEndian.Uint32(buf[4:]), buf[8:16]
		answer := make([]byte, headerOut+attrOut)
		copy(answer[8:], unique)
		switch op {
		case opInit:
			answer = answer[:headerOut+initOut]
			binary.NativeEndian.PutUint32(answer[headerOut:], 7)
			binary.NativeEndian.PutUint32(answer[headerOut+4:], 31)
		case opGetattr:
			binary.NativeEndian.PutUint32(answer[mode:], unix.S_IFDIR|0o755)
		default:
			answer = answer[:headerOut]
			noSys := -int32(unix.ENOSYS)
			binary.NativeEndian.PutUint32(answer[4:], uint32(noSys))
		}
		binary.NativeEndian.PutUint32(answer, uint32(len(answer)))
		if _, err := dev.Write(answer); err != nil {
			return
		}
	}
}

// The working directory of any process may be on a file system whose server has died. It is told by its name.
func TestFindByDirDoesNotTouchOtherFileSystems(t *testing.T) {
	foreign, die := dyingFUSE(t)
	// The shell changes into it by itself: in a fork of the test, the fork would wait for the server that the test is.
	inDead := exec.Command("sh", "-c", `cd "$1" && echo in && exec sleep 1000`, "sh", foreign)
	out, err := inDead.StdoutPipe()
	require.NoError(t, err)
	shimtest.Child(t, inDead)
	_, err = io.ReadFull(out, make([]byte, 3))
	require.NoError(t, err)
	die()
	dir := t.TempDir()
	cmd := exec.Command("sleep", "1000")
	cmd.Dir = dir
	want, err := LookupProcess(shimtest.Child(t, cmd).Process.Pid)
	require.NoError(t, err)

	var found []ProcessID
	done := make(chan struct{})
	go func() {
		defer close(done)
		found, err = FindByDir(t.Context(), dir)
	}()
	select {
	case <-done:
		require.NoError(t, err)
		require.Equal(t, []ProcessID{want}, found)
	case <-time.After(time.Minute):
		t.Fatal("the look for processes does not return")
	}
}

// blockEnviron makes the environment of one process unreadable: the read does not return before the end of the test.
func blockEnviron(t *testing.T, pid int) (reads func() int) {
	t.Helper()
	end, began := make(chan struct{}), make(chan struct{}, 1000)
	real := readEnviron
	readEnviron = func(p int) ([]byte, error) {
		if p == pid {
			began <- struct{}{}
			<-end
		}
		return real(p)
	}
	t.Cleanup(func() {
		close(end)
		id, err := LookupProcess(pid)
		require.NoError(t, err)
		eventually(t, func() bool { return !isStuck(id) }, "the read has returned")
		readEnviron = real
	})
	return func() int { return len(began) }
}

// A process that is stuck in the kernel holds up nobody; that it is not of the launch is not known then.
func TestScanWithStuckProcess(t *testing.T) {
	token := NewToken()
	carrier := shimtest.Child(t, withToken(exec.Command("sleep", "1000"), token)).Process.Pid
	eventually(t, func() bool { return len(byToken(t, token)) == 1 }, "it runs")
	other := sleeper(t).Process.Pid
	reads := blockEnviron(t, other)

	for range 3 {
		found, err := FindByToken(t.Context(), token)
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		require.ErrorContains(t, err, fmt.Sprint(other))
		require.Len(t, found, 1)
		require.Equal(t, carrier, found[0].Pid)
	}
	ended, err := LookupProcess(carrier)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_ = ended.Wait(t.Context()) // what was found is ended
		cancel()
	}()
	err = EndLaunch(ctx, token, nil)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.False(t, ended.Alive())
	require.Equal(t, 1, reads(), "one look that does not return is enough")

	// It cannot be of a launch that it is older than.
	eventually(t, func() bool { return Now() > startOf(t, other) }, "the clock goes on")
	later, err := FindByToken(t.Context(), NewToken())
	require.NoError(t, err)
	require.Empty(t, later)
	require.NoError(t, EndLaunch(t.Context(), NewToken(), nil))
}

// A caller that goes away before a look has had its time has found nothing out about the process: the next look is made.
func TestLookThatIsGivenUp(t *testing.T) {
	id, err := LookupProcess(sleeper(t).Process.Pid)
	require.NoError(t, err)
	reads := blockEnviron(t, id.Pid)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for n := range 2 {
		_, err := environ(ctx, id)
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		eventually(t, func() bool { return reads() == n+1 }, "it is looked at")
	}
	eventually(t, func() bool { return isStuck(id) }, "the look takes longer than it may")
	_, err = environ(t.Context(), id)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.Equal(t, 2, reads())
}

func startOf(t *testing.T, pid int) uint64 {
	t.Helper()
	id, err := LookupProcess(pid)
	require.NoError(t, err)
	return id.StartTime
}

func TestScanThatCannotLook(t *testing.T) {
	token := NewToken()
	cmd := shimtest.Child(t, withToken(exec.Command("sleep", "1000"), token))
	for name, spoil := range map[string]func(){
		"no /proc":    func() { procDir = t.TempDir() + "/none" },
		"empty /proc": func() { procDir = t.TempDir() },
		"descriptors": func() { readEnviron = func(int) ([]byte, error) { return nil, unix.EMFILE } },
		"memory":      func() { readEnviron = func(int) ([]byte, error) { return nil, syscall.ENOMEM } },
		"permission":  func() { readEnviron = func(int) ([]byte, error) { return nil, unix.EACCES } },
	} {
		t.Run(name, func(t *testing.T) {
			was, read := procDir, readEnviron
			defer func() { procDir, readEnviron = was, read }()
			spoil()
			_, err := FindByToken(t.Context(), token)
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			require.Error(t, EndLaunch(ctx, token, nil))
			require.Nil(t, cmd.ProcessState)
		})
	}
	require.Len(t, byToken(t, token), 1)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := FindByToken(ended, token)
	require.Error(t, err)
	_, err = FindByDir(ended, t.TempDir())
	require.Error(t, err)
}

// What runs as a user that we are not, and may not be looked at, is none that we have started.
func TestScanPassesOverProcessesOfOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to start a process of another user")
	}
	token := NewToken()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	other := shimtest.Child(t, cmd).Process.Pid
	real := readEnviron
	readEnviron = func(pid int) ([]byte, error) {
		if pid == other {
			return nil, unix.EACCES
		}
		return real(pid)
	}
	t.Cleanup(func() { readEnviron = real })
	require.Empty(t, byToken(t, token))
}

func TestLeadsSession(t *testing.T) {
	child, err := LookupProcess(sleeper(t).Process.Pid)
	require.NoError(t, err)
	require.False(t, child.LeadsSession())
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	daemon, err := LookupProcess(shimtest.Child(t, cmd).Process.Pid)
	require.NoError(t, err)
	require.True(t, daemon.LeadsSession())
	require.False(t, ProcessID{Pid: 1 << 30, StartTime: 1}.LeadsSession())
}
