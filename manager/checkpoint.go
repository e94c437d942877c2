// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/pkg/errors"
)

// rootfsDiff is the archive of what a container had changed in its rootfs, beside the checkpoint's directory: part of the layout that
// CRIU tooling writes (github.com/checkpoint-restore/checkpointctl).
const rootfsDiff = "rootfs-diff.tar"

// restoreCheckpoint finishes a create that CRI restores from a checkpoint: the rootfs diff goes in once the shim has mounted the
// rootfs and before the process starts, and the process is started here since CRI takes a restored container for a running one.
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
	if _, err := archive.Apply(ctx, i.bundle.Rootfs(), stream); err != nil {
		return errors.Wrapf(err, "cannot unpack %s into %s", path, i.bundle.Rootfs())
	}
	return nil
}
