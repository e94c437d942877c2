// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// patience is how long a service may take to serve, or to end.
const patience = 60 * time.Second

// Service is a program that serves until it is ended, such as containerd or dockerd. Its methods may be called from
// several goroutines, one at a time.
type Service struct {
	// Within is how long it may take to serve.
	Within time.Duration

	name    string // what errors call it, and its log
	site    *Site
	serves  func(context.Context) error
	program string
	args    []string
	cmd     *exec.Cmd
	done    chan struct{} // closed when the process that was started last has ended
}

// Service makes a service, which is not started yet, of a program and its arguments. Its log is NAME.log. serves asks
// it, and returns no error once it answers.
func (s *Site) Service(
	name string, serves func(context.Context) error, program string, args ...string,
) *Service {
	return &Service{name: name, site: s, serves: serves, program: program, args: args, Within: patience}
}

// Start starts it, also again after its end, and returns once it serves.
func (v *Service) Start(ctx context.Context) error {
	log, err := v.site.Log(v.name + ".log")
	if err != nil {
		return err
	}
	defer log.Close()
	v.cmd = v.site.Command(context.WithoutCancel(ctx), log, v.program, v.args...)
	if err := v.cmd.Start(); err != nil {
		return errors.Wrapf(err, "cannot start %s", v.name)
	}
	v.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // its log tells
		close(done)
	}(v.cmd, v.done)
	return v.ready(ctx)
}

func (v *Service) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, v.Within)
	defer cancel()
	for {
		err := v.serves(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-v.done:
			return errors.Errorf("%s ended instead of serving, see %s.log", v.name, v.name)
		case <-ctx.Done():
			return errors.Errorf("%s does not serve (%v), see %s.log", v.name, err, v.name)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Pid is that of its process.
func (v *Service) Pid() int { return v.cmd.Process.Pid }

// Stop ends it as an init system would.
func (v *Service) Stop() error { return v.End(syscall.SIGTERM) }

// Kill ends it as a crash does.
func (v *Service) Kill() error { return v.End(syscall.SIGKILL) }

// End ends it by a signal and waits until it is gone.
func (v *Service) End(sig syscall.Signal) error {
	select {
	case <-v.done:
		return errors.Errorf("%s had ended by itself, see %s.log", v.name, v.name)
	default:
	}
	if err := v.cmd.Process.Signal(sig); err != nil {
		return errors.Wrapf(err, "cannot signal %s", v.name)
	}
	select {
	case <-v.done:
		return nil
	case <-time.After(patience):
		_ = v.cmd.Process.Kill()
		<-v.done
		return errors.Errorf("%s did not end on %v within %v", v.name, sig, patience)
	}
}

// Shared is the host of all tests of a suite, which run one after the other: made by the first that asks for it, and
// ended after the last.
type Shared[H any] struct {
	once sync.Once
	host *H
	err  error
}

// Of is the host; the test fails if it cannot be made, and is skipped outside of a box.
func (s *Shared[H]) Of(t *testing.T, begin func(*Site) (*H, error)) *H {
	t.Helper()
	site := Attach(t)
	s.once.Do(func() { s.host, s.err = begin(site) })
	require.NoError(t, s.err)
	return s.host
}

// Main runs the tests and stops the services of the host, if one was made, in this order. It is for TestMain.
func (s *Shared[H]) Main(m *testing.M, services func(*H) []*Service) {
	code := m.Run()
	var running []*Service
	if s.host != nil {
		running = services(s.host)
	}
	for _, v := range running {
		if err := v.Stop(); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			code = 1
		}
	}
	os.Exit(code)
}
