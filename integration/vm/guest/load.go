// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"
)

const (
	address   = "/run/containerd/containerd.sock"
	pullName  = registryAddress + "/box:latest"
	localName = "localhost/busybox:latest"
)

// load creates, starts, kills and deletes containers without a pause, one worker for each id c0, c1, …, and pulls and
// removes an image beside them, for so many rounds each; with 0 rounds until the machine is gone. Each round of each
// is a line on the standard output, and "busy" once each has had its first. What an earlier boot left of an id's
// container is removed as a user would, by delete.
func load(args []string) error {
	namespace, err := argument(args, 0)
	if err != nil {
		return err
	}
	workers, err := number(args, 1)
	if err != nil {
		return err
	}
	rounds, err := number(args, 2)
	if err != nil {
		return err
	}
	client, err := containerd.New(address)
	if err != nil {
		return errors.Wrap(err, "cannot reach the daemon")
	}
	ctx := namespaces.WithNamespace(context.Background(), namespace)
	image, err := client.GetImage(ctx, localName)
	if err != nil {
		return errors.Wrap(err, "cannot find the image")
	}
	all, ctx := errgroup.WithContext(ctx)
	var first sync.WaitGroup // the first round of each
	repeat := func(name string, round func() error) {
		first.Add(1)
		all.Go(func() error {
			for n := 1; rounds == 0 || n <= rounds; n++ {
				if err := round(); err != nil {
					return errors.Wrap(err, name)
				}
				fmt.Fprintf(os.Stdout, "%s %d\n", name, n)
				if n == 1 {
					first.Done()
				}
			}
			return nil
		})
	}
	for n := range workers {
		id := fmt.Sprintf("c%d", n)
		repeat(id, func() error { return oneLife(ctx, client, image, id) })
	}
	repeat("pull", func() error { return pull(ctx, client) })
	go func() {
		first.Wait()
		fmt.Fprintln(os.Stdout, "busy")
	}()
	return all.Wait()
}

func number(args []string, n int) (int, error) {
	text, err := argument(args, n)
	if err != nil {
		return 0, err
	}
	v, err := strconv.Atoi(text)
	return v, errors.Wrapf(err, "argument %d", n+1)
}

// oneLife takes a container from create to delete.
func oneLife(ctx context.Context, client *containerd.Client, image containerd.Image, id string) error {
	if err := forget(ctx, client, id); err != nil {
		return err
	}
	c, err := client.NewContainer(ctx, id, containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("sleep", "1000000")))
	if err != nil {
		return errors.Wrap(err, "cannot create the container")
	}
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return errors.Wrap(err, "cannot create the task")
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		return errors.Wrap(err, "cannot wait for the task")
	}
	if err := task.Start(ctx); err != nil {
		return errors.Wrap(err, "cannot start the task")
	}
	if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
		return errors.Wrap(err, "cannot kill the task")
	}
	select {
	case status := <-exited:
		if status.Error() != nil || status.ExitCode() != 128+uint32(syscall.SIGKILL) {
			return errors.Errorf("the task's exit is %d, %v", status.ExitCode(), status.Error())
		}
	case <-time.After(2 * time.Minute):
		return errors.New("the task's exit does not come")
	}
	_, err = task.Delete(ctx)
	for tries := 1; errdefs.IsDeadlineExceeded(err) && tries < 5; tries++ {
		_, err = task.Delete(ctx) // the machine was too busy for a deadline of the daemon's: clients come back
	}
	if err != nil {
		return errors.Wrap(err, "cannot delete the task")
	}
	return errors.Wrap(c.Delete(ctx, containerd.WithSnapshotCleanup), "cannot delete the container")
}

// forget removes what a power cut has left of a container: its entry, its snapshot. A task there cannot be.
func forget(ctx context.Context, client *containerd.Client, id string) error {
	c, err := client.LoadContainer(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		return errors.Wrap(err, "cannot look for the container")
	default:
		if _, err := c.Task(ctx, nil); !errdefs.IsNotFound(err) {
			return errors.Errorf("there is a task after a power cut: %v", err)
		}
		if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
			return errors.Wrap(err, "cannot delete what is left of the container")
		}
	}
	err = client.SnapshotService("").Remove(ctx, id)
	if errdefs.IsNotFound(err) {
		err = nil
	}
	return errors.Wrap(err, "cannot remove what is left of the container's snapshot")
}

func pull(ctx context.Context, client *containerd.Client) error {
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts)),
	})
	if _, err := client.Pull(ctx, pullName, containerd.WithPullUnpack, containerd.WithResolver(resolver)); err != nil {
		return errors.Wrap(err, "cannot pull")
	}
	err := client.ImageService().Delete(ctx, pullName, images.SynchronousDelete())
	return errors.Wrap(err, "cannot remove the pulled image")
}
