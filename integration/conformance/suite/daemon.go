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

// Daemon is the containerd under test, at the paths that it has on a node.
type Daemon struct {
	site   *Site
	config string
	cmd    *exec.Cmd
	done   chan struct{}
}

// Address is that of its socket.
const Address = "/run/containerd/containerd.sock"

// patience is how long a daemon may take to serve, or to end.
const patience = 60 * time.Second

// Daemon starts containerd with the config and returns once it serves. Its log is containerd.log.
func (s *Site) Daemon(ctx context.Context, config string) (*Daemon, error) {
	d := &Daemon{site: s, config: "/etc/containerd/config.toml"}
	if err := os.MkdirAll(filepath.Dir(d.config), 0o755); err != nil {
		return nil, errors.Wrap(err, "cannot make a directory for the daemon's config")
	}
	if err := os.WriteFile(d.config, []byte(config), 0o644); err != nil {
		return nil, errors.Wrap(err, "cannot write the daemon's config")
	}
	return d, d.Start(ctx)
}

// Start starts it again after Stop or Kill.
func (d *Daemon) Start(ctx context.Context) error {
	log, err := d.site.Log("containerd.log")
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = d.site.Command(context.WithoutCancel(ctx), log, "containerd", "--config", d.config, "--address", Address)
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
		if c, err := client.New(Address, client.WithTimeout(time.Second)); err == nil {
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
