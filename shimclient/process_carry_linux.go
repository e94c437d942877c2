// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"context"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// carries reports whether a process has the token of a launch: in the variable, or, of a named launch, the id as the
// shim's name in traces or as the id that a shim is run for. empty: it has no environment, which is also so in an exec
// or an exit.
func carries(ctx context.Context, id ProcessID, token string) (has, empty bool, err error) {
	env, err := environ(ctx, id)
	if err != nil {
		return false, false, err
	}
	name := launchName(token)
	has = hasEntry(env, CarrierEnv(token))
	if has || name == "" {
		return has, len(env) == 0, nil
	}
	args, err := beside(ctx, id, func() ([]byte, error) { return os.ReadFile(procPath(id.Pid, "cmdline")) })
	return isRunFor(args, name), len(env) == 0, err
}

// hasEntry looks for one of the strings of an environment.
func hasEntry(env []byte, want string) bool {
	for entry := range bytes.SplitSeq(env, []byte{0}) {
		if string(entry) == want {
			return true
		}
	}
	return false
}

// isRunFor reports whether a command line is that of a shim's helper or server for an id. A process that merely names
// the id, as a search for it does, is none.
func isRunFor(args []byte, id string) bool {
	list := bytes.Split(args, []byte{0})
	at := func(flag string) int {
		return slices.IndexFunc(list, func(arg []byte) bool { return string(arg) == flag })
	}
	i := at("-id")
	return i > 0 && i+1 < len(list) && string(list[i+1]) == id && at("-namespace") > 0
}

// CheckNamed fails if a named launch cannot be found by its name: the shim that answered, pid, does not give it to what
// it runs. No launch of the binary is named again. A pid of zero is one that is not known, and fails too.
func (l *Launcher) CheckNamed(ctx context.Context, b Binary, token string, pid ProcessID) error {
	if launchName(token) == "" {
		return nil
	}
	env, err := environ(ctx, pid)
	if err == nil && hasEntry(env, CarrierEnv(token)) {
		return nil
	}
	l.protocols.unname(b.Path)
	return errors.Wrapf(errdefs.ErrFailedPrecondition,
		"process %d of shim %s does not pass on the id that it was started under", pid.Pid, b.Path)
}
