// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"context"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"

	"github.com/shimyard/shimyard/manager/inspect"
)

// list asks for all instances of the namespace that the command line names.
func (a *app) list(ctx context.Context, cmd *cli.Command, processes bool) ([]inspect.Instance, error) {
	var r inspect.ListResponse
	err := a.ask(ctx, cmd, &inspect.ListRequest{Namespace: cmd.String("namespace"), Processes: processes}, &r)
	return r.Instances, err
}

// find returns the namespace and id of the one instance that a name, perhaps cut short, stands for.
func (a *app) find(ctx context.Context, cmd *cli.Command, name string) (namespace, id string, err error) {
	all, err := a.list(ctx, cmd, false)
	if err != nil {
		return "", "", err
	}
	i, err := match(all, name)
	if err != nil {
		return "", "", exitError(err)
	}
	return i.Namespace, i.ID, nil
}

// match picks the instance that a name stands for: a whole id before the beginning of one. Errors: NotFound, and
// InvalidArgument where it may be any of several, which are named.
func match(all []inspect.Instance, name string) (inspect.Instance, error) {
	namespace, id, qualified := strings.Cut(name, "/")
	if !qualified {
		namespace, id = "", name
	}
	var whole, begun []inspect.Instance
	for _, i := range all {
		switch {
		case namespace != "" && i.Namespace != namespace, id == "":
		case i.ID == id:
			whole = append(whole, i)
		case strings.HasPrefix(i.ID, id):
			begun = append(begun, i)
		}
	}
	found := whole
	if len(found) == 0 {
		found = begun
	}
	switch len(found) {
	case 0:
		return inspect.Instance{}, errors.Wrapf(errdefs.ErrNotFound, "no task or sandbox %q", name)
	case 1:
		return found[0], nil
	}
	names := make([]string, 0, len(found))
	for _, i := range found {
		names = append(names, i.Namespace+"/"+i.ID)
	}
	slices.Sort(names)
	return inspect.Instance{}, errors.Wrapf(errdefs.ErrInvalidArgument, "%q may be any of %s", name,
		strings.Join(names, ", "))
}
