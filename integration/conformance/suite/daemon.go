// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/pkg/errors"
)

// Daemon is the containerd under test, at the paths that it has on a node. Its methods may be called from several
// goroutines, one at a time.
type Daemon struct {
	// Address is that of its socket.
	Address string

	site *Site
	args []string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process that was started last has ended
}

// patience is how long a daemon may take to serve, or to end.
const patience = 60 * time.Second

// DaemonOptions are those of one daemon.
type DaemonOptions struct {
	// Config is the text of its config file.
	Config string
	// Suffix is that of the names of its directories, where they are not to be /run/containerd and /var/lib/containerd.
	Suffix string
	// Args are further arguments.
	Args []string
}

// Daemon starts containerd and returns once it serves. Its log is containerd.log.
func (s *Site) Daemon(ctx context.Context, o DaemonOptions) (*Daemon, error) {
	config := "/etc/containerd/config" + o.Suffix + ".toml"
	if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
		return nil, errors.Wrap(err, "cannot make a directory for the daemon's config")
	}
	if err := os.WriteFile(config, []byte(o.Config), 0o644); err != nil {
		return nil, errors.Wrap(err, "cannot write the daemon's config")
	}
	state := "/run/containerd" + o.Suffix
	d := &Daemon{site: s, Address: state + "/containerd.sock"}
	d.args = append([]string{"--config", config, "--address", d.Address, "--state", state, "--root",
		"/var/lib/containerd" + o.Suffix}, o.Args...)
	return d, d.Start(ctx)
}

// Start starts it again after Stop or Kill.
func (d *Daemon) Start(ctx context.Context) error {
	log, err := d.site.Log("containerd.log")
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = d.site.Command(context.WithoutCancel(ctx), log, "containerd", d.args...)
	if err := d.cmd.Start(); err != nil {
		return errors.Wrap(err, "cannot start the daemon")
	}
	d.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // its log tells
		close(done)
	}(d.cmd, d.done)
	return d.ready(ctx)
}

func (d *Daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if c, err := client.New(d.Address, client.WithTimeout(time.Second)); err == nil {
			ok, err := c.IsServing(ctx)
			c.Close()
			if err == nil && ok {
				return nil
			}
		}
		select {
		case <-d.done:
			return errors.New("the daemon ended instead of serving, see containerd.log")
		case <-ctx.Done():
			return errors.New("the daemon does not serve, see containerd.log")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Pid is that of the daemon's process.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// Stop ends it as an init system would, Kill as a crash does. Both wait until it is gone.
func (d *Daemon) Stop() error { return d.end(syscall.SIGTERM) }

// Kill is described with Stop.
func (d *Daemon) Kill() error { return d.end(syscall.SIGKILL) }

func (d *Daemon) end(sig syscall.Signal) error {
	select {
	case <-d.done:
		return errors.New("the daemon had ended by itself, see containerd.log")
	default:
	}
	if err := d.cmd.Process.Signal(sig); err != nil {
		return errors.Wrap(err, "cannot signal the daemon")
	}
	select {
	case <-d.done:
		return nil
	case <-time.After(patience):
		_ = d.cmd.Process.Kill()
		<-d.done
		return errors.Errorf("the daemon did not end on %v within %v", sig, patience)
	}
}

// KeepAlive starts the daemon again, pause after each of its ends, until the returned function is called, which does
// not end the daemon. It is for suites that kill the daemon themselves.
func (d *Daemon) KeepAlive(ctx context.Context, pause time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-d.done:
			case <-ctx.Done():
				return
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			if err := d.Start(ctx); err != nil && ctx.Err() == nil {
				d.site.Fail("the daemon was to start again: %v", err)
				return
			}
		}
	}()
	return func() { cancel(); <-ended }
}
