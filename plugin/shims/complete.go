// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v3"
)

// completionTime is for how long a shell waits for names: the person has just pressed a key.
const completionTime = 500 * time.Millisecond

// completeID offers the ids of the daemon's instances where one is to be given, and the flags where one of those has
// been begun. What cannot be asked is not offered: a shell has no use for an error.
func (a *app) completeID(ctx context.Context, cmd *cli.Command) {
	if last := lastWord(os.Args); strings.HasPrefix(last, "-") || cmd.Args().Len() > 1 {
		cli.DefaultCompleteWithFlags(ctx, cmd)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	all, err := a.list(ctx, cmd, false)
	if err != nil {
		return
	}
	for _, i := range all {
		if strings.HasPrefix(i.ID, cmd.Args().First()) {
			fmt.Fprintln(cmd.Root().Writer, i.ID)
		}
	}
}

// lastWord is what the shell completes: it stands before the flag that asks for that.
func lastWord(args []string) string {
	if len(args) < 2 {
		return ""
	}
	return args[len(args)-2]
}
