// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

const (
	// createGrace is how long the undo of a create waits for a Create call whose caller has left, helperGrace for what
	// the shim has run for one that was cut off, before the launch is ended by force, where the shim serves no other
	// instance. Until then it is not known what is being made, and what is made afterwards would be left behind: an OCI
	// runtime that is ended half way leaves cgroups that its own delete does not know of.
	createGrace = 30 * time.Second
	helperGrace = 10 * time.Second
	helperPause = 20 * time.Millisecond // between looks at what the shim runs
	// strandedLimit is how many Creates of callers that have left a shim may leave unanswered before it gets no further
	// one. Each keeps an instance and a goroutine until it is answered.
	strandedLimit = 8
)

// createTask sends Create. When ctx ends first, the call goes on without the caller and its answer is left for the undo
// to wait for.
func (i *Instance) createTask(ctx context.Context, opts runtime.CreateOpts, rootfs []mount.Mount) (uint32, error) {
	req := &taskapi.CreateTaskRequest{
		ID: i.id, Bundle: i.home().Path,
		Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal,
		Checkpoint: opts.Checkpoint, Options: options(opts), Rootfs: mount.ToProto(rootfs),
	}
	var resp *taskapi.CreateTaskResponse
	err := i.detached(ctx, func(ctx context.Context) (err error) {
		resp, err = i.sendCreate(ctx, req)
		return err
	})
	if err != nil {
		return 0, err
	}
	return resp.Pid, nil
}

// detached runs a create call that must not be abandoned half way. It fails with Unavailable, and nothing is sent,
// where the shim owes the answers to too many such calls already.
func (i *Instance) detached(ctx context.Context, call func(context.Context) error) error {
	if p := i.process(); p != nil && stranded(p) >= strandedLimit {
		return errors.Wrapf(errdefs.ErrUnavailable,
			"shim at %s has left %d creates unanswered whose callers have given up; "+
				"it gets no further one before it answers", p.Endpoint, strandedLimit)
	}
	send := func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) }
	c, left := outlast(ctx, func(f func()) { go f() }, send)
	if left {
		i.creation.OnCallerLeft(c.done)
		return errors.Wrapf(ctx.Err(), "creating %s %s", i.kind, i.id)
	}
	return c.err
}

// stranded counts the Creates that have not been answered since their callers left.
func stranded(p *shimproc.Process) (n int) {
	for _, i := range instancesOf(p) {
		if i.creation.Owed() != nil {
			n++
		}
	}
	return n
}

func (i *Instance) sendCreate(
	ctx context.Context, req *taskapi.CreateTaskRequest,
) (resp *taskapi.CreateTaskResponse, err error) {
	i.creation.SetCut(true)
	err = i.call(ctx, shimproc.Forced, func(ctx context.Context, t *shimclient.Task) error {
		resp, err = t.Create(ctx, req)
		return err
	})
	i.creation.SetCut(errors.Is(err, shimclient.ErrConnectionLost) || errors.Is(err, shimproc.ErrDead))
	return resp, err
}

// endLaunchOf makes cleaning begin with the end of all processes of the instance's launch, and of those that made its
// process, which no other instance is behind.
func (i *Instance) endLaunchOf(p *shimproc.Process) {
	var tokens []string
	var spare func(shimclient.ProcessID) bool
	if p != nil {
		tokens, _ = p.Traces()
		spare = p.Sparing(i.ledger.Passage().Took)
		p.End()
	}
	i.mu.Lock()
	way, house := i.ledger.Passage(), i.house
	i.mu.Unlock()
	if way.Took == 0 && !way.Joined {
		spare = nil // the record of an earlier version; the launch is the instance's own
	}
	if way.Launch != nil && !way.Joined && !slices.Contains(tokens, way.Launch.Token) {
		tokens = append(tokens, way.Launch.Token)
	}
	if p == nil && house != nil {
		tokens = append(tokens, house.token)
		spare = shimproc.Sparing(shimclient.ProcessID{}, house.answered, way.Took)
	}
	i.remains.SetLaunches(tokens, spare)
}

// endOwnLaunch makes cleaning begin with the end of all processes of a launch whose answer is not on record, so that no
// Create was sent: which shim it has made is not known, it may be another than the one that has died.
func (i *Instance) endOwnLaunch() {
	way := i.ledger.Passage()
	if way.Launch == nil || way.Joined || way.Launch.Answered != 0 {
		return
	}
	i.remains.SetLaunches([]string{way.Launch.Token}, shimproc.Sparing(shimclient.ProcessID{}, 0, way.Took))
}

// awaitHelpers waits until no process of the instance's launch is left but the shim itself: a Create that a crash of
// the daemon, or the death of the shim, has cut off goes on in the OCI runtime that the shim has run for it. What was
// there before, and what was detached, as a hook detaches a daemon, is not waited for.
func (i *Instance) awaitHelpers(p *shimproc.Process) {
	tokens := i.launchTokens(p)
	if len(tokens) == 0 || p == nil {
		return
	}
	took := i.ledger.Passage().Took
	helps := func(id shimclient.ProcessID) bool {
		return !p.MayBeShim(id) && id.StartTime >= took && !id.LeadsSession()
	}
	until := time.Now().Add(helperGrace)
	for time.Now().Before(until) {
		others := func(token string) bool {
			ids, err := i.m.findByToken(token)
			return err != nil && !errdefs.IsNotImplemented(err) || slices.ContainsFunc(ids, helps)
		}
		if !slices.ContainsFunc(tokens, others) || !i.m.sleep(helperPause) {
			return
		}
	}
}

// launchTokens are the launches by which what the shim runs for the instance is found, if a Create of it may still be
// under way.
func (i *Instance) launchTokens(p *shimproc.Process) []string {
	way := i.ledger.Passage()
	switch {
	case !i.creation.WasCut() || p == nil:
		return nil
	case way.Warm != "":
		tokens, _ := p.Traces()
		return tokens
	case way.Launch == nil || way.Joined:
		return nil
	}
	return []string{way.Launch.Token}
}

// rootfsDiff is the archive of what a container had changed in its rootfs, beside the checkpoint's directory: part of
// the layout that CRIU tooling writes (github.com/checkpoint-restore/checkpointctl).
const rootfsDiff = "rootfs-diff.tar"

// restoreCheckpoint finishes a create that CRI restores from a checkpoint: the rootfs diff goes in once the shim has
// mounted the rootfs and before the process starts, and the process is started here since CRI takes a restored
// container for a running one.
func (i *Instance) restoreCheckpoint(ctx context.Context, checkpoint string) (uint32, error) {
	if err := i.applyDiff(ctx, filepath.Join(checkpoint, "..", rootfsDiff)); err != nil {
		return 0, err
	}
	pid, err := i.sendStart(ctx, "")
	return pid, errors.Wrap(err, "cannot start the restored container")
}

func (i *Instance) applyDiff(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return errors.Wrap(err, "cannot open the checkpoint's rootfs diff")
	}
	defer f.Close()
	stream, err := compression.DecompressStream(f)
	if err != nil {
		return errors.Wrapf(err, "cannot decompress %s", path)
	}
	defer stream.Close()
	rootfs := i.home().Rootfs()
	if _, err := archive.Apply(ctx, rootfs, stream); err != nil {
		return errors.Wrapf(err, "cannot unpack %s into %s", path, rootfs)
	}
	return nil
}

// findByToken is shimclient's, bounded.
func (m *ShimManager) findByToken(token string) ([]shimclient.ProcessID, error) {
	ctx, cancel := context.WithTimeout(m.ctx, shimproc.ScanTime)
	defer cancel()
	return shimclient.FindByToken(ctx, token)
}
