// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/vm/wire"
)

// agent runs the scripts that come over the device until the machine goes down.
func agent(args []string) error {
	device, err := argument(args, 0)
	if err != nil {
		return err
	}
	tty, err := openRaw(device)
	if err != nil {
		return err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return errors.Wrap(err, "cannot tell which boot this is")
	}
	if err := send(tty, wire.Reply{Boot: strings.TrimSpace(string(boot))}); err != nil {
		return err
	}
	// The tty's own buffer is small: it is emptied whether or not a script runs.
	lines := make(chan []byte, 16)
	readErr := make(chan error, 1)
	go func() { readErr <- readLines(tty, lines) }()
	for {
		select {
		case err := <-readErr:
			return err
		case line := <-lines:
			var req wire.Request
			if err := json.Unmarshal(line, &req); err != nil {
				continue // half a line from a host that has gone
			}
			if err := send(tty, run(req)); err != nil {
				return err
			}
		}
	}
}

func readLines(r io.Reader, lines chan<- []byte) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return errors.Wrap(err, "cannot read from the host")
		}
		lines <- bytes.Clone(line)
	}
}

// openRaw opens a serial port as a mere line of bytes: no echo, no translation, no signals.
func openRaw(device string) (*os.File, error) {
	tty, err := os.OpenFile(device, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, errors.Wrap(err, "cannot open the serial port")
	}
	fd := int(tty.Fd())
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, errors.Wrapf(err, "cannot read the settings of %s", device)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return tty, errors.Wrapf(unix.IoctlSetTermios(fd, unix.TCSETS, t), "cannot make %s raw", device)
}

func send(w io.Writer, r wire.Reply) error {
	data, err := json.Marshal(r)
	if err != nil {
		return errors.Wrap(err, "cannot encode an answer")
	}
	_, err = w.Write(append(data, '\n'))
	return errors.Wrap(err, "cannot answer the host")
}

// run runs a script in a process group of its own; at its deadline the whole group is killed.
func run(req wire.Request) wire.Reply {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(req.Seconds)*time.Second)
	defer cancel()
	script := "if [ -e " + wire.Library + " ]; then source " + wire.Library + "; fi\n" + req.Script
	cmd := exec.CommandContext(ctx, "/bin/bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = "/root"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second // what the script leaves in the background may hold its output open
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	reply := wire.Reply{ID: req.ID, Output: tail(out.String())}
	if cmd.ProcessState != nil {
		reply.Exit = cmd.ProcessState.ExitCode()
	}
	switch {
	case ctx.Err() != nil:
		reply.Err = "the script did not end in time and was killed"
	case cmd.ProcessState == nil:
		reply.Err, reply.Exit = err.Error(), -1
	}
	return reply
}

// tail cuts what a serial port would need too long for.
func tail(s string) string {
	const most = 128 << 10
	if len(s) <= most {
		return s
	}
	return "[…]" + s[len(s)-most:]
}
