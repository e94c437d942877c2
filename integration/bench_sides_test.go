// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/report"
)

// contender is one of the three ways to run the same container.
type contender struct {
	side report.Side
	// prepare makes what a container is made of: its metadata and snapshot. Nobody measures that.
	prepare func(id string) (subject, error)
}

// subject is one container, from its create to its delete.
type subject interface {
	create() error
	start() error
	end() error // kills it and waits until it is gone
	delete() error
	discard() error // what prepare has made
}

// contenders are all three, the one that begins first: it is another in each round.
func (b *bench) contenders(round int) []contender {
	all := []contender{{report.Stock, b.stock.prepare}, {report.Ours, b.ours.prepare}, {report.Bare, b.bare.prepare}}
	at := round % len(all)
	return append(all[at:], all[:at]...)
}

// boxed is a container of a daemon, as a client of it sees it.
type boxed struct {
	*box
	task containerd.Task
}

func (n *node) prepare(id string) (subject, error) {
	b, err := n.tryCreate(id, forever())
	return &boxed{box: b}, err
}

// with is prepare for a container that is made with more options.
func (n *node) with(opts ...setupOpt) func(id string) (subject, error) {
	return func(id string) (subject, error) {
		b, err := n.tryCreate(id, append([]setupOpt{forever()}, opts...)...)
		return &boxed{box: b}, err
	}
}

func (s *boxed) create() (err error) {
	s.task, err = s.NewTask(s.ctx, cio.NullIO)
	return errors.Wrapf(err, "cannot create %s", s.ID())
}

func (s *boxed) start() error { return errors.Wrapf(s.task.Start(s.ctx), "cannot start %s", s.ID()) }

func (s *boxed) end() error {
	ch, err := s.task.Wait(s.ctx)
	if err != nil {
		return errors.Wrapf(err, "cannot wait for %s", s.ID())
	}
	if err := s.task.Kill(s.ctx, unix.SIGKILL); err != nil {
		return errors.Wrapf(err, "cannot kill %s", s.ID())
	}
	status := <-ch
	if code, _, err := status.Result(); err != nil || code != 137 {
		return errors.Errorf("%s has exited with %d, %v", s.ID(), code, err)
	}
	return nil
}

func (s *boxed) delete() error {
	_, err := s.task.Delete(s.ctx)
	return errors.Wrapf(err, "cannot delete %s", s.ID())
}

func (s *boxed) discard() error {
	return errors.Wrapf(s.Delete(s.ctx, containerd.WithSnapshotCleanup), "cannot delete the container of %s", s.ID())
}

// bare runs containers with an OCI runtime alone. Their specs and snapshots are those that the client of the stock
// daemon makes, with the same options.
type bare struct {
	b       *bench
	dir     string
	runtime string
	opts    []setupOpt
	env     []string
}

func newBare(b *bench, name, runtime string, opts ...setupOpt) *bare {
	r := &bare{b: b, dir: filepath.Join(b.dir, name), runtime: runtime, opts: opts}
	for _, dir := range []string{r.dir, r.path("bundles"), r.path("runc")} {
		require.NoError(b.t, os.Mkdir(dir, 0o711))
	}
	return r
}

func (r *bare) path(elem ...string) string { return filepath.Join(append([]string{r.dir}, elem...)...) }

func (r *bare) runc(args ...string) error {
	cmd := exec.Command(r.runtime, append([]string{"--root", r.path("runc")}, args...)...)
	// What create leaves open is the container's; a pipe would have to be read to its end.
	log, err := os.OpenFile(r.path("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return errors.Wrap(err, "cannot open runc's log")
	}
	defer log.Close()
	cmd.Stderr = log
	cmd.Env = append(os.Environ(), r.env...)
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(r.path("log")) // the error alone will do
		return errors.Wrapf(err, "runc %v: %s", args, said)
	}
	return nil
}

// leftovers lists what should be gone.
func (r *bare) leftovers() []string {
	var left []string
	for _, pattern := range []string{r.path("bundles", "*"), r.path("runc", "*")} {
		found, _ := filepath.Glob(pattern) // the pattern is well-formed
		left = append(left, found...)
	}
	return left
}

// bundled is a container of runc's.
type bundled struct {
	r      *bare
	box    *box
	id     string
	spec   []byte
	mounts []mount.Mount
	pid    int
}

func (r *bare) prepare(id string) (subject, error) {
	n := r.b.stock
	box, err := n.tryCreate("bare-"+id, append([]setupOpt{forever()}, r.opts...)...)
	if err != nil {
		return nil, err
	}
	s := &bundled{r: r, box: box, id: id}
	info, err := box.Spec(box.ctx)
	if err != nil {
		return nil, errors.Wrapf(err, "cannot get the spec of %s", id)
	}
	if s.spec, err = json.Marshal(info); err != nil {
		return nil, errors.Wrapf(err, "cannot write the spec of %s", id)
	}
	s.mounts, err = n.Client().SnapshotService(snapshoter).Mounts(box.ctx, box.ID())
	return s, errors.Wrapf(err, "cannot get the mounts of %s", id)
}

func (s *bundled) bundle(elem ...string) string {
	return s.r.path(append([]string{"bundles", s.id}, elem...)...)
}

func (s *bundled) create() error {
	if err := os.MkdirAll(s.bundle("rootfs"), 0o711); err != nil {
		return errors.Wrapf(err, "cannot make the bundle of %s", s.id)
	}
	if err := os.WriteFile(s.bundle("config.json"), s.spec, 0o600); err != nil {
		return errors.Wrapf(err, "cannot write the spec of %s", s.id)
	}
	if err := mount.All(s.mounts, s.bundle("rootfs")); err != nil {
		return errors.Wrapf(err, "cannot mount the rootfs of %s", s.id)
	}
	if err := s.r.runc("create", "--bundle", s.bundle(), "--pid-file", s.bundle("pid"), s.id); err != nil {
		return err
	}
	text, err := os.ReadFile(s.bundle("pid"))
	if err != nil {
		return errors.Wrapf(err, "cannot read the pid of %s", s.id)
	}
	s.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	return errors.Wrapf(err, "cannot read the pid of %s", s.id)
}

func (s *bundled) start() error { return s.r.runc("start", s.id) }

func (s *bundled) end() error {
	if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
		return errors.Wrapf(err, "cannot kill %s", s.id)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// A shim tells of an exit when it has reaped the process; here the machine's init does.
	for runs(uint32(s.pid)) {
		select {
		case <-ctx.Done():
			return errors.Errorf("%s does not end", s.id)
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

func (s *bundled) delete() error {
	if err := s.r.runc("delete", s.id); err != nil {
		return err
	}
	if err := mount.UnmountAll(s.bundle("rootfs"), 0); err != nil {
		return errors.Wrapf(err, "cannot unmount the rootfs of %s", s.id)
	}
	return errors.Wrapf(os.RemoveAll(s.bundle()), "cannot remove the bundle of %s", s.id)
}

func (s *bundled) discard() error {
	return errors.Wrapf(s.box.Delete(s.box.ctx, containerd.WithSnapshotCleanup), "cannot delete the container of %s",
		s.id)
}

// cycle is the whole life of a subject that was prepared.
func cycle(s subject) error {
	for _, step := range []func() error{s.create, s.start, s.end, s.delete} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// prepared makes subjects of one side; the returned function discards them.
func (b *bench) prepared(c contender, name string, count int) ([]subject, func()) {
	b.t.Helper()
	subjects := make([]subject, count)
	b.ours.each(count, func(i int) (err error) {
		subjects[i], err = c.prepare(fmt.Sprintf("%s-%d", name, i))
		return err
	})
	return subjects, func() {
		b.t.Helper()
		b.ours.each(count, func(i int) error { return subjects[i].discard() })
	}
}
