// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"
)

// Where the scripts' boxes (lib.sh) have what is known of them: "PID START-TIME", and what they count.
const (
	marksDir = "/run/marks"
	logsDir  = "/var/log"
)

// unnoticed checks that containers have not noticed what has happened: each is the same process as when it was marked,
// listed as running, counts on, and is open to an exec. It is a program for the same reason as leftovers.
func unnoticed(args []string) error {
	namespace, err := argument(args, 0)
	if err != nil {
		return err
	}
	if len(args) < 2 {
		return errors.New("no container is named: this checks nothing")
	}
	client, err := containerd.New(address)
	if err != nil {
		return errors.Wrap(err, "cannot reach the daemon")
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), namespace), 2*time.Minute)
	defer cancel()
	var all errgroup.Group
	for _, id := range args[1:] {
		all.Go(func() error { return errors.Wrap(lookAtBox(ctx, client, id), id) })
	}
	return all.Wait()
}

func lookAtBox(ctx context.Context, client *containerd.Client, id string) error {
	mark, err := os.ReadFile(filepath.Join(marksDir, id))
	if err != nil {
		return errors.Wrap(err, "it was not marked")
	}
	pid, err := listedPid(ctx, client, id)
	if err != nil {
		return err
	}
	if is, was := fmt.Sprint(pid, " ", began(pid)), strings.TrimSpace(string(mark)); is != was {
		return errors.Errorf("it is process %s now, it was %s", is, was)
	}
	before, err := counted(id)
	if err != nil {
		return err
	}
	if err := until(ctx, func() (bool, error) {
		now, err := counted(id)
		return now > before, err
	}); err != nil {
		return errors.Wrapf(err, "it does not count on from %d", before)
	}
	said, err := execIn(ctx, client, id)
	if err == nil && said != "hello\n" {
		err = errors.Errorf("an exec has said %q", said)
	}
	return err
}

// listedPid waits until the task is listed as running: a daemon that was just started may not be there yet.
func listedPid(ctx context.Context, client *containerd.Client, id string) (pid uint32, err error) {
	var last string
	err = until(ctx, func() (bool, error) {
		list, err := client.TaskService().List(ctx, &tasks.ListTasksRequest{})
		if err != nil {
			last = err.Error()
			return false, nil
		}
		last = "it is not listed"
		for _, p := range list.Tasks {
			if p.ID == id {
				pid, last = p.Pid, "it is "+p.Status.String()
				return p.Status == task.Status_RUNNING, nil
			}
		}
		return false, nil
	})
	return pid, errors.Wrap(err, last)
}

func until(ctx context.Context, is func() (bool, error)) error {
	for {
		if yes, err := is(); yes || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// began is when a process began, in ticks since the boot, which no clock changes.
func began(pid uint32) string {
	fields := statOf(filepath.Join("/proc", fmt.Sprint(pid)))
	if len(fields) < 20 {
		return "gone"
	}
	return fields[19]
}

// counted is the last whole line of a box's log.
func counted(id string) (int, error) {
	data, err := os.ReadFile(filepath.Join(logsDir, "box-"+id+".log"))
	if err != nil {
		return 0, errors.Wrap(err, "cannot read its log")
	}
	lines := bytes.Split(data, []byte("\n"))
	if len(lines) < 2 {
		return 0, errors.New("its log is empty")
	}
	n, err := strconv.Atoi(string(lines[len(lines)-2]))
	return n, errors.Wrap(err, "its log is not what it counts")
}

// execIn has a process in the container say hello.
func execIn(ctx context.Context, client *containerd.Client, id string) (string, error) {
	c, err := client.LoadContainer(ctx, id)
	if err != nil {
		return "", errors.Wrap(err, "cannot load the container")
	}
	spec, err := c.Spec(ctx)
	if err != nil {
		return "", errors.Wrap(err, "cannot read the container's spec")
	}
	t, err := c.Task(ctx, nil)
	if err != nil {
		return "", errors.Wrap(err, "cannot find the task")
	}
	var out bytes.Buffer
	spec.Process.Args, spec.Process.Terminal = []string{"echo", "hello"}, false
	streams := cio.NewCreator(cio.WithStreams(nil, &out, io.Discard))
	exec, err := t.Exec(ctx, fmt.Sprint("look", os.Getpid()), spec.Process, streams)
	if err != nil {
		return "", errors.Wrap(err, "cannot make an exec")
	}
	defer func() { // of what has failed; else there is nothing to delete any more
		_, _ = exec.Delete(context.WithoutCancel(ctx), containerd.WithProcessKill)
	}()
	exited, err := exec.Wait(ctx)
	if err != nil {
		return "", errors.Wrap(err, "cannot wait for an exec")
	}
	if err := exec.Start(ctx); err != nil {
		return "", errors.Wrap(err, "cannot start an exec")
	}
	status := <-exited
	if status.Error() != nil || status.ExitCode() != 0 {
		return "", errors.Errorf("an exec has ended with %d, %v", status.ExitCode(), status.Error())
	}
	drained := make(chan struct{})
	go func() {
		exec.IO().Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-ctx.Done():
		return "", errors.New("an exec has ended, its output does not")
	}
	_, err = exec.Delete(ctx)
	return out.String(), errors.Wrap(err, "cannot delete an exec")
}
