// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// pollInterval is how often a process is looked at where the kernel has no
// pidfd (before 5.3, or a filter forbids it).
const pollInterval = 100 * time.Millisecond

// pidfdOpen is a variable for the tests of what is done without it.
var pidfdOpen = unix.PidfdOpen

// Now is the moment on the clock of process starts: a process that begins from now
// on has a StartTime of at least this. Its unit is that of ProcessID.StartTime;
// 0 where the system does not say.
func Now() uint64 {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return 0
	}
	return uint64(time.Duration(up.Nano()) / (time.Second / ticksPerSecond))
}

// LookupProcess returns the identity of a running process; NotFound when there
// is none, or only a zombie.
func LookupProcess(pid int) (ProcessID, error) {
	st, err := readStat(pid)
	if err != nil {
		return ProcessID{}, err
	}
	if st.dead() {
		return ProcessID{}, errors.Wrapf(errdefs.ErrNotFound, "process %d has exited", pid)
	}
	return ProcessID{Pid: pid, StartTime: st.start}, nil
}

// Alive reports whether the process runs. False is certain: it is gone, a
// zombie, or its pid is another's; where that cannot be told the answer is true.
func (p ProcessID) Alive() bool {
	if p.Pid <= 0 {
		return false
	}
	now, err := LookupProcess(p.Pid)
	if err != nil {
		return !errdefs.IsNotFound(err)
	}
	return now == p
}

// Signal sends sig to the process, and to no other that has got its pid.
// NotFound when it is gone.
func (p ProcessID) Signal(sig syscall.Signal) error {
	return p.signalIf(sig, func() bool { return true })
}

// signalIf sends sig if check holds after the process has been pinned.
func (p ProcessID) signalIf(sig syscall.Signal, check func() bool) error {
	fd, err := p.pin()
	if errors.Is(err, errNoPidfd) {
		if !p.Alive() || !check() {
			return p.gone()
		}
		return p.signalError(sig, unix.Kill(p.Pid, sig))
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !check() {
		return p.gone()
	}
	return p.signalError(sig, unix.PidfdSendSignal(fd, sig, nil, 0))
}

func (p ProcessID) signalError(sig syscall.Signal, err error) error {
	if err == unix.ESRCH {
		return p.gone()
	}
	return errors.Wrapf(err, "cannot send signal %d to process %d", sig, p.Pid)
}

func (p ProcessID) gone() error {
	return errors.Wrapf(errdefs.ErrNotFound, "process %d is gone", p.Pid)
}

var errNoPidfd = errors.New("no pidfd on this system")

// pin opens a pidfd and only then compares the start time, so that what the
// pidfd refers to is the process meant.
func (p ProcessID) pin() (int, error) {
	if p.Pid <= 0 {
		return -1, p.gone()
	}
	fd, err := pidfdOpen(p.Pid, 0)
	switch err {
	case nil:
	case unix.ESRCH, unix.EINVAL: // EINVAL: now a thread's id, or an exited one's
		return -1, p.gone()
	case unix.ENOSYS, unix.EPERM:
		return -1, errNoPidfd
	default:
		return -1, errors.Wrapf(err, "cannot open process %d", p.Pid)
	}
	if !p.Alive() {
		unix.Close(fd)
		return -1, p.gone()
	}
	return fd, nil
}

// Wait waits until the process is gone, or a zombie; nil at once if it is. It
// sleeps in the runtime's poller: no thread, and nothing to clean up. The error
// is that of ctx, or that the process cannot be watched.
func (p ProcessID) Wait(ctx context.Context) error {
	fd, err := p.pin()
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case errors.Is(err, errNoPidfd):
		return p.poll(ctx)
	case err != nil:
		return err
	}
	err = sleepUntilExit(ctx, fd)
	if err != nil && ctx.Err() != nil {
		return errors.Wrapf(endOf(ctx), "waiting for process %d", p.Pid)
	}
	return errors.Wrapf(err, "cannot watch process %d", p.Pid)
}

func (p ProcessID) poll(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for p.Alive() {
		select {
		case <-ctx.Done():
			return errors.Wrapf(endOf(ctx), "waiting for process %d", p.Pid)
		case <-tick.C:
		}
	}
	return nil
}

// procStat is what is read of /proc/PID/stat.
type procStat struct {
	state   byte
	parent  int
	session int
	threads int
	start   uint64
	// ticks of CPU time used, in user and kernel mode; pages of memory resident.
	ticks, pages uint64
	// unclear: the environment cannot be read, because the process is just being
	// given a new image, or because it is on its way out: its memory is gone
	// then, and its descriptors may not be.
	unclear bool
}

// dead tells a zombie. A leader whose other threads still run shows as one too,
// and is not dead.
func (s procStat) dead() bool {
	return s.state == 'X' || s.state == 'x' || (s.state == 'Z' && s.threads <= 1)
}

// readStat is NotFound when there is no such process.
func readStat(pid int) (procStat, error) {
	if pid <= 0 {
		return procStat{}, errors.Wrapf(errdefs.ErrNotFound, "there is no process %d", pid)
	}
	data, err := readSmall(procPath(pid, "stat"))
	switch {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH):
		return procStat{}, errors.Wrapf(errdefs.ErrNotFound, "there is no process %d", pid)
	case err != nil:
		return procStat{}, errors.Wrapf(err, "cannot look at process %d", pid)
	}
	st, ok := parseStat(data)
	if !ok {
		return procStat{}, errors.Errorf("cannot look at process %d: stat is %q", pid, data)
	}
	return st, nil
}

// taskExiting is PF_EXITING among the flags of a process (field 9).
const taskExiting = 0x4

// parseStat reads fields 3, 4, 6, 20, 22, and those that tell an exec or an exit. The second, the name in parentheses,
// may hold spaces, parentheses and newlines, so counting starts after the last one.
func parseStat(data []byte) (procStat, bool) {
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return procStat{}, false
	}
	fields := strings.Fields(string(data[end+1:]))
	const first = 3
	if len(fields) <= 22-first || len(fields[0]) != 1 {
		return procStat{}, false
	}
	threads, err := strconv.Atoi(fields[20-first])
	if err != nil {
		return procStat{}, false
	}
	start, err := strconv.ParseUint(fields[22-first], 10, 64)
	parent, _ := strconv.Atoi(fields[4-first])
	session, _ := strconv.Atoi(fields[6-first])
	st := procStat{state: fields[0][0], parent: parent, session: session, threads: threads, start: start}
	user, _ := strconv.ParseUint(fields[14-first], 10, 64)
	system, _ := strconv.ParseUint(fields[15-first], 10, 64)
	st.ticks = user + system
	if len(fields) > 24-first {
		st.pages, _ = strconv.ParseUint(fields[24-first], 10, 64)
	}
	flags, _ := strconv.ParseUint(fields[9-first], 10, 64)
	st.unclear = flags&taskExiting != 0 && !st.dead()
	if len(fields) > 51-first {
		// The end of the environment (51) is set at the end of an exec. Kernel
		// threads have no memory (23) either, and of a process that is not for us
		// to look at the start of the code (26) is told as 1.
		execing := fields[51-first] == "0" && fields[23-first] != "0" && fields[26-first] != "1"
		st.unclear = st.unclear || execing
	}
	return st, err == nil
}

func procPath(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// BootID names this boot of the machine; "" where the system does not say.
func BootID() string { return bootID() }

// bootID reads it once: a restore asks for it with every bundle.
var bootID = sync.OnceValue(func() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
})
