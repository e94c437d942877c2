// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/vm/wire"
)

// bootTime is how long a boot may take: without KVM, on a busy host, minutes.
const bootTime = 10 * time.Minute

// Machine is one node: its disk, and, while it is on, its qemu. It is used by one goroutine at a time.
type Machine struct {
	// Boot is the id of the current boot, as the kernel tells it.
	Boot string
	// CPU is what qemu has used, over all boots that are over: the measure of a run that a busy host does not change.
	CPU time.Duration
	// Library is sourced before each script.
	Library string
	// Memory is what the next Start gives it, in MiB.
	Memory int

	img         *Image
	dir         string // disk, console log, socket
	payload     string
	proc        *exec.Cmd
	gone        chan struct{} // closed once qemu has ended
	line        net.Conn
	replies     *bufio.Reader
	lastRequest int
	resume      bool // the next Start goes on where the image's machine was
}

// New makes a machine in dir, with a disk of its own that begins as the image's. payload is the read-only second disk.
func New(img *Image, dir, payload string) (*Machine, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, errors.Wrap(err, "cannot make the machine's directory")
	}
	m := &Machine{Memory: 1024, img: img, dir: dir, payload: payload, resume: img.saved != nil}
	return m, run("cp", "--sparse=always", "--reflink=auto", img.Disk, m.disk())
}

func (m *Machine) disk() string { return filepath.Join(m.dir, "disk") }

func (m *Machine) monitorPath() string { return filepath.Join(m.dir, "monitor.sock") }

// ConsolePath is the log of the first serial port, from every boot.
func (m *Machine) ConsolePath() string { return filepath.Join(m.dir, "console.log") }

// Accelerator tells what runs the machine's instructions: "kvm" where it works, else "tcg", which is some ten times
// slower. A kvm that is there without the CPU's own support (a nested one by software) does not run Debian's kernel.
var Accelerator = sync.OnceValue(func() string {
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !regexp.MustCompile(`(?m)^flags\s.*\b(vmx|svm)\b`).Match(cpu) {
		return "tcg"
	}
	cmd := exec.Command("qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "64", "-nodefaults",
		"-display", "none", "-S", "-monitor", "stdio")
	cmd.Stdin = strings.NewReader("quit\n")
	if cmd.Run() == nil {
		return "kvm"
	}
	return "tcg"
})

// Console are qemu's arguments for a person at the terminal: the first serial port has a shell.
func (m *Machine) Console() []string {
	return append(m.args(" "+consoleArg), "-serial", "mon:stdio", "-serial", "null")
}

// args are qemu's, without serial ports; more is for the kernel.
func (m *Machine) args(more string) []string {
	accel, cpu, cpus := Accelerator(), "host", "2"
	if accel == "tcg" {
		// A simple CPU: what a newer one adds is emulated at a loss. And one: two machines side by side get more done than
		// two CPUs of one.
		accel, cpu, cpus = "tcg,thread=multi", "qemu64", "1"
	}
	return []string{
		"-accel", accel, "-cpu", cpu, "-smp", cmp.Or(os.Getenv("SHIMYARD_VM_CPUS"), cpus), "-m", strconv.Itoa(m.Memory),
		"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", m.img.Kernel, "-initrd", m.img.Initrd,
		"-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable random.trust_cpu=on " +
			"systemd.show_status=0 no_timer_check systemd.unified_cgroup_hierarchy=1" + more,
		// What the machine has written is in the host's page cache when qemu is killed: that it need not be on the host's
		// disk by then takes nothing from a power cut.
		"-drive", "file=" + m.disk() + ",format=raw,if=virtio,cache=unsafe",
		"-drive", "file=" + m.payload + ",format=raw,if=virtio,readonly=on",
	}
}

// Start boots the machine, or resumes the one that its image was made of, and waits for its agent.
func (m *Machine) Start() error {
	socket := filepath.Join(m.dir, "agent.sock")
	if err := os.RemoveAll(socket); err != nil {
		return errors.Wrap(err, "cannot remove an old socket")
	}
	args := append(m.args(""),
		"-chardev", "file,id=console,append=on,path="+m.ConsolePath(), "-device", "isa-serial,chardev=console",
		// It is there once the agent's is, which is waited for.
		"-chardev", "socket,id=monitor,server=on,wait=off,path="+m.monitorPath(), "-mon", "chardev=monitor,mode=control",
		"-chardev", "socket,id=agent,server=on,wait=on,path="+socket, "-device", "isa-serial,chardev=agent")
	if m.resume {
		args = append(args, "-incoming", "exec:cat "+m.img.saved.memory)
	}
	m.proc = exec.Command("qemu-system-x86_64", args...)
	// Dying with the test is the kernel's business: nothing is left of a test that is killed.
	m.proc.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.OpenFile(filepath.Join(m.dir, "qemu.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return errors.Wrap(err, "cannot open qemu's log")
	}
	defer log.Close()
	m.proc.Stdout, m.proc.Stderr = log, log
	if err := m.proc.Start(); err != nil {
		return errors.Wrap(err, "cannot start qemu")
	}
	m.gone = make(chan struct{})
	go func(proc *exec.Cmd, gone chan struct{}) {
		_ = proc.Wait() // how it ended is in the log
		close(gone)
	}(m.proc, m.gone)
	if err := m.connect(socket); err != nil {
		m.Cut()
		return err
	}
	m.resume = false
	return nil
}

// connect waits for the agent's first word.
func (m *Machine) connect(socket string) error {
	deadline := time.Now().Add(bootTime)
	for {
		var err error
		if m.line, err = net.Dial("unix", socket); err == nil {
			break
		}
		select {
		case <-m.gone:
			return errors.Errorf("qemu ended at once, see %s/qemu.log", m.dir)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return errors.Wrap(err, "cannot reach qemu")
		}
	}
	m.replies = bufio.NewReader(m.line)
	if m.resume {
		if err := m.resumed(); err != nil {
			return errors.Wrapf(err, "the machine did not go on, see %s/qemu.log", m.dir)
		}
		m.Boot = m.img.saved.boot
	} else {
		reply, err := m.receive(0, deadline)
		if err != nil {
			return errors.Wrapf(err, "the machine did not come up, see %s", m.ConsolePath())
		}
		m.Boot = reply.Boot
	}
	return m.handOver()
}

// handOver has the library ready for the scripts.
func (m *Machine) handOver() error {
	script := fmt.Sprintf("mkdir -p %s\ncat >%s <<'LIBRARY'\n%s\nLIBRARY\n", filepath.Dir(wire.Library), wire.Library, m.Library)
	output, exit, err := m.Script(script, bootTime)
	if err == nil && exit != 0 {
		err = errors.Errorf("exit %d: %s", exit, output)
	}
	return errors.Wrap(err, "cannot hand the library over")
}

// receive reads up to the answer with the id, past what is not for us: firmware may write to the port, too.
func (m *Machine) receive(id int, deadline time.Time) (*wire.Reply, error) {
	if err := m.line.SetReadDeadline(deadline); err != nil {
		return nil, errors.Wrap(err, "cannot set a deadline")
	}
	for {
		line, err := m.replies.ReadBytes('\n')
		if err != nil {
			return nil, errors.Wrap(err, "the agent does not answer")
		}
		var reply wire.Reply
		if json.Unmarshal(line, &reply) == nil && reply.ID == id {
			return &reply, nil
		}
	}
}

// Script runs a script in the machine with bash. A script that fails is no error; one that could not run, or not to
// its end, is.
func (m *Machine) Script(script string, limit time.Duration) (output string, exit int, err error) {
	if m.proc == nil {
		return "", -1, errors.New("the machine is off")
	}
	m.lastRequest++
	req := wire.Request{ID: m.lastRequest, Script: script, Seconds: int(limit.Seconds())}
	data, err := json.Marshal(req)
	if err != nil {
		return "", -1, errors.Wrap(err, "cannot encode a script")
	}
	if _, err := m.line.Write(append(data, '\n')); err != nil {
		return "", -1, errors.Wrap(err, "cannot reach the agent")
	}
	reply, err := m.receive(req.ID, time.Now().Add(limit+time.Minute))
	if err != nil {
		return "", -1, err
	}
	if reply.Err != "" {
		return reply.Output, reply.Exit, errors.New(reply.Err)
	}
	return reply.Output, reply.Exit, nil
}

// Cut is a power cut: the machine is gone at once, with what it had not written to its disk.
func (m *Machine) Cut() {
	if m.proc == nil {
		return
	}
	_ = m.proc.Process.Kill() // it may have ended by itself
	m.wait()
}

// Shutdown powers the machine off in good order.
func (m *Machine) Shutdown() error {
	if m.proc == nil {
		return nil
	}
	if _, _, err := m.Script("systemd-run --on-active=1 --timer-property=AccuracySec=100ms systemctl poweroff", time.Minute); err != nil {
		m.Cut()
		return err
	}
	select {
	case <-m.gone:
	case <-time.After(bootTime):
		m.Cut()
		return errors.New("the machine does not power off")
	}
	m.wait()
	return nil
}

func (m *Machine) wait() {
	<-m.gone
	m.CPU += m.proc.ProcessState.UserTime() + m.proc.ProcessState.SystemTime()
	if m.line != nil {
		m.line.Close()
	}
	m.proc, m.line = nil, nil
}

// UsedCPU is CPU with what the boot that goes on has used.
func (m *Machine) UsedCPU() time.Duration {
	if m.proc == nil {
		return m.CPU
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.proc.Process.Pid))
	if err != nil {
		return m.CPU
	}
	// The name, in parentheses, may hold anything; after it comes the state as field 3. utime and stime are 14 and 15,
	// in ticks of 1/100 s.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks int
	for _, field := range fields[11:13] {
		n, _ := strconv.Atoi(field) // the kernel writes numbers there
		ticks += n
	}
	return m.CPU + time.Duration(ticks)*10*time.Millisecond
}

// On tells whether the machine runs.
func (m *Machine) On() bool { return m.proc != nil }

// Remove ends the machine and removes its disk; its logs stay.
func (m *Machine) Remove() error {
	m.Cut()
	err := os.Remove(m.disk())
	if errors.Is(err, os.ErrNotExist) {
		err = nil // it is an image's now
	}
	return errors.Wrap(err, "cannot remove the machine's disk")
}
