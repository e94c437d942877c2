// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/shimyard/shimyard/manager/inspect"
)

// restoringTooLong is after which time a restore counts as stuck.
const restoringTooLong = time.Minute

func (a *app) checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "name what needs a person: a line for each, and exit code 1 if there is any",
		Description: "Found are shims that do not answer or cannot be reached, cleanups that do not succeed, tasks whose shim has not answered " +
			"for a minute after the daemon's start, and shims that run a binary which was removed or replaced.",
		OnUsageError: usageError,
		Action:       a.runCheck,
	}
}

func (a *app) runCheck(ctx context.Context, cmd *cli.Command) error {
	if err := noArgs(cmd); err != nil {
		return err
	}
	all, err := a.list(ctx, cmd, true)
	if err != nil {
		return err
	}
	found := 0
	for _, i := range all {
		for _, what := range problems(i, a.now()) {
			found++
			if _, err := fmt.Fprintf(cmd.Root().Writer, "%s/%s: %s\n", i.Namespace, i.ID, escape(what)); err != nil {
				return err
			}
		}
	}
	if found > 0 {
		return cli.Exit("", ExitProblem)
	}
	return nil
}

// problems are what a person should know of an instance.
func problems(i inspect.Instance, now time.Time) (found []string) {
	since := age(now.Sub(i.Since))
	shim := "its shim"
	if i.Shim != nil {
		shim = fmt.Sprintf("its shim (pid %d)", i.Shim.Pid)
	}
	switch i.State {
	case inspect.StateUnresponsive:
		found = append(found, fmt.Sprintf("%s has not answered for %s", shim, since))
	case inspect.StateReconnecting:
		found = append(found, withError(fmt.Sprintf("%s has not been reachable for %s", shim, since), i.LastError))
	case inspect.StateRestoring:
		if now.Sub(i.Since) >= restoringTooLong {
			found = append(found, withError(fmt.Sprintf("%s has not answered since the daemon's start %s ago", shim,
				since), i.LastError))
		}
	case inspect.StateCleaning, inspect.StateDead:
		if i.LastError != "" {
			found = append(found, fmt.Sprintf("cleaning up has not succeeded for %s: %s", since, i.LastError))
		}
	}
	if i.Shim != nil && i.Shim.Deleted {
		found = append(found,
			fmt.Sprintf("%s runs a binary that was removed or replaced; its tasks go on, new ones get the present binary", shim))
	}
	return found
}

func withError(text, failure string) string {
	if failure == "" {
		return text
	}
	return text + ": " + failure
}
