// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pkg/errors"
)

const (
	// rescanPause is between two scans.
	rescanPause = 10 * time.Millisecond
	// cleanScans is how many scans in a row must find nothing: a process may
	// fork into a pid that one scan has passed, and exit before it is reached.
	cleanScans = 2
	// endTime bounds EndLaunch where its caller does not.
	endTime = 10 * time.Second
	// leftTime bounds the look at what is left after that.
	leftTime = time.Second
)

// EndLaunch kills every process that carries the token of a launch, until none is
// left but those that spare, which may be nil, holds for. What a shim has run for
// a container, and a daemon that a hook left behind, carry the token too: the
// caller has to spare them if the launch had a task.
//
// It returns an error that names what is left when ctx ends, or after 10 s. That it
// could not look at some process is such an error.
func EndLaunch(ctx context.Context, token string, spare func(ProcessID) bool) error {
	if err := checkToken(token); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	clean, passed := 0, make(map[ProcessID]int)
	for {
		s, err := scanLaunch(ctx, token, spare)
		clean++
		for _, p := range s.passing {
			if passed[p]++; passed[p] <= unclearScans {
				clean = 0
			}
		}
		if len(s.found) > 0 || err != nil {
			clean = 0
		}
		if clean == cleanScans {
			return nil
		}
		killAll(ctx, s.found, token)
		if !sleep(ctx, rescanPause) {
			return leftError(ctx, token, spare)
		}
	}
}

// scanLaunch is scanToken without the processes that spare, which may be nil, holds
// for.
func scanLaunch(ctx context.Context, token string, spare func(ProcessID) bool) (sightings, error) {
	s, err := scanToken(ctx, token)
	if spare != nil {
		s.found = slices.DeleteFunc(s.found, spare)
		s.passing = slices.DeleteFunc(s.passing, spare)
	}
	return s, err
}

// killAll kills the processes, each only if it is still the one found, and waits
// for those as long as ctx allows.
func killAll(ctx context.Context, processes []ProcessID, token string) {
	var killed []ProcessID
	for _, p := range processes {
		still := func() bool {
			has, _, err := carries(ctx, p, token)
			return err == nil && has
		}
		if p.signalIf(syscall.SIGKILL, still) == nil {
			killed = append(killed, p)
		}
	}
	for _, p := range killed {
		_ = p.Wait(ctx)
	}
}

// leftError says what is left when there is no more time to end it.
func leftError(ctx context.Context, token string, spare func(ProcessID) bool) error {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), leftTime)
	defer cancel()
	s, err := scanLaunch(last, token, spare)
	if len(s.found) == 0 {
		if err == nil && len(s.passing) > 0 {
			err = unclear(s.passing[0].Pid, errors.New("it is in an exec or an exit"))
		}
		return errors.WithMessage(err, "cannot tell whether all processes of the launch have ended")
	}
	pids := make([]string, len(s.found))
	for i, p := range s.found {
		pids[i] = fmt.Sprint(p.Pid)
	}
	return errors.Wrapf(endOf(ctx), "cannot end all processes of the launch, left: %s", strings.Join(pids, ", "))
}
