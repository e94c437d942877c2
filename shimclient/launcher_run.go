// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/pkg/errors"
)

const (
	// killTime is how long a killed helper may take to die, as one in an
	// uninterruptible wait does.
	killTime = 5 * time.Second
	// leakTime is how long the pipes of a helper stay open after it, where
	// they cannot be emptied without waiting.
	leakTime = time.Second
)

// helperOutput is what a shim command wrote.
type helperOutput struct {
	stdout []byte
	// stderr is trimmed, and no more than the end of it.
	stderr string
}

// exitError is the failure of a command that ended by itself.
type exitError struct {
	cause  error
	stderr string
}

func (e *exitError) Error() string {
	if e.stderr == "" {
		return e.cause.Error()
	}
	return e.stderr + ": " + e.cause.Error()
}

func (e *exitError) Unwrap() error { return e.cause }

// exitedByItself reports whether a command ended with a status, not by a signal.
func exitedByItself(err error) bool {
	var status *exec.ExitError
	return errors.As(err, new(*exitError)) && errors.As(err, &status) && status.ExitCode() > 0
}

// endOf is why ctx has ended, always of the class that ctx.Err() is.
func endOf(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return errors.WithMessage(err, cause.Error())
}

// helper is a running shim command.
type helper struct {
	cmd            *exec.Cmd
	stdout, stderr *capture
	exited         chan struct{} // closed when the process has exited; on Linux it is then not yet reaped
	reaped         bool          // set before exited is closed: Wait has been called already
	waitErr        error
}

// runHelper runs a command, which must lead a process group of its own, until it
// exits. Its output is read that long and no longer, so that a daemon that
// inherited stdout or stderr does not hold it up; all that the command itself
// wrote is in the output. When ctx ends the process group is killed first.
//
// The output is set with an error too. An exitError means that the command ended
// by itself, and not well.
func runHelper(ctx context.Context, cmd *exec.Cmd) (*helperOutput, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	h, err := startHelper(ctx, cmd, func() { cancel(ErrOutputTooLong) })
	if err != nil {
		return &helperOutput{}, err
	}
	go h.watch()
	killed := false
	select {
	case <-h.exited:
	case <-ctx.Done():
		killed = true
		h.kill()
		if !h.await(killTime) {
			pid := cmd.Process.Pid
			go h.abandon()
			return &helperOutput{}, errors.Wrapf(endOf(ctx), "shim command (pid %d) does not die when killed", pid)
		}
	}
	err = h.finish()
	stdout, truncated := h.stdout.result()
	stderr, _ := h.stderr.result()
	out := &helperOutput{stdout: stdout, stderr: strings.TrimSpace(string(stderr))}
	switch {
	case truncated:
		return out, withStderr(errors.WithStack(ErrOutputTooLong), out.stderr)
	case killed:
		return out, withStderr(errors.Wrap(endOf(ctx), "shim command was killed while it ran"), out.stderr)
	case err != nil:
		return out, &exitError{cause: err, stderr: failureText(out)}
	}
	return out, nil
}

// failureText is what a failed command said: on stderr, or else on stdout.
func failureText(out *helperOutput) string {
	if out.stderr == "" && isText(out.stdout) {
		return strings.TrimSpace(string(tail(out.stdout, maxStderr)))
	}
	return out.stderr
}

func withStderr(err error, stderr string) error {
	if stderr == "" {
		return err
	}
	return errors.WithMessagef(err, "shim said on stderr: %s", stderr)
}

func startHelper(ctx context.Context, cmd *exec.Cmd, tooLong func()) (_ *helper, err error) {
	if ctx.Err() != nil {
		return nil, endOf(ctx)
	}
	stdout, err := newCapture(maxStdout, false, tooLong)
	if err != nil {
		return nil, err
	}
	stderr, err := newCapture(maxStderr, true, nil)
	if err != nil {
		stdout.discard()
		return nil, err
	}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = stdout.writer, stderr.writer, leakTime
	if err := execHelper(cmd); err != nil {
		stdout.discard()
		stderr.discard()
		return nil, err
	}
	stdout.start()
	stderr.start()
	return &helper{cmd: cmd, stdout: stdout, stderr: stderr, exited: make(chan struct{})}, nil
}

// execHelper starts the command, and makes it clear what is missing if that is
// why it fails: the bundle looks like the binary in the error of an exec.
func execHelper(cmd *exec.Cmd) error {
	err := cmd.Start()
	if err == nil {
		return nil
	}
	if cmd.Dir != "" {
		if _, dirErr := os.Stat(cmd.Dir); dirErr != nil {
			return errors.Wrap(dirErr, "cannot execute it in the bundle")
		}
	}
	return errors.Wrap(err, "cannot execute it")
}

// watch closes exited when the process is gone.
func (h *helper) watch() {
	if !awaitExit(h.cmd.Process.Pid) {
		h.waitErr = h.cmd.Wait()
		h.reaped = true
	}
	close(h.exited)
}

// kill ends the process group, whose id is not free before the process that
// leads it has been reaped.
func (h *helper) kill() { killGroup(h.cmd.Process) }

func (h *helper) await(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-h.exited:
		return true
	case <-timer.C:
		return false
	}
}

// finish collects output and exit status, after exited is closed.
func (h *helper) finish() error {
	h.stdout.finish()
	h.stderr.finish()
	if !h.reaped {
		h.waitErr = h.cmd.Wait()
	}
	if errors.Is(h.waitErr, exec.ErrWaitDelay) {
		return nil
	}
	return h.waitErr
}

// abandon lets a process that does not die be reaped when it does.
func (h *helper) abandon() {
	h.stdout.finish()
	h.stderr.finish()
	<-h.exited
	if !h.reaped {
		_ = h.cmd.Wait()
	}
}
