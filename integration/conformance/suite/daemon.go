// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/pkg/errors"
)

// Daemon is the containerd under test, at the paths that it has on a node.
type Daemon struct {
	*Service
	// Address is that of its socket.
	Address string
}

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
	d := &Daemon{Address: state + "/containerd.sock"}
	args := append([]string{"--config", config, "--address", d.Address, "--state", state, "--root",
		"/var/lib/containerd" + o.Suffix}, o.Args...)
	d.Service = s.Service("containerd", d.serves, "containerd", args...)
	return d, d.Start(ctx)
}

func (d *Daemon) serves(ctx context.Context) error {
	c, err := client.New(d.Address, client.WithTimeout(time.Second))
	if err != nil {
		return errors.Wrap(err, "cannot reach the daemon")
	}
	defer c.Close()
	ok, err := c.IsServing(ctx)
	if err == nil && !ok {
		err = errors.New("it is not ready")
	}
	return err
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
