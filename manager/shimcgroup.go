// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"path/filepath"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/shimclient"
)

// runcShim is the file name of the shim that takes runc's options whatever the runtime is called.
const runcShim = "containerd-shim-runc-v2"

// startOptions are what a shim of a binary is started with, where its client gives opts: with the cgroup that config
// names for the shim, if the client names none. Only runc's options can say it, and the shim goes there by itself
// before it serves anything; for a shim with options of another kind it is an InvalidArgument error, so that none ends
// up elsewhere unseen.
func (c *Config) startOptions(b shimclient.Binary, opts *anypb.Any) (*anypb.Any, error) {
	cgroup := c.runtime(b).ShimCgroup
	if cgroup == "" {
		return opts, nil
	}
	o := &runcoptions.Options{}
	switch {
	case opts == nil && (b.Runtime == RuncV2 || filepath.Base(b.Path) == runcShim):
	case opts != nil && typeurl.Is(opts, o):
		if err := typeurl.UnmarshalTo(opts, o); err != nil {
			return nil, errors.Wrapf(errdefs.ErrInvalidArgument, "cannot read the runtime's options: %v", err)
		}
	default:
		return nil, errors.Wrapf(errdefs.ErrInvalidArgument,
			"the config has shim_cgroup %q for runtime %s, whose options (%q) cannot say it; remove the key for this runtime",
			cgroup, b.Runtime, opts.GetTypeUrl())
	}
	if o.ShimCgroup != "" {
		return opts, nil
	}
	o.ShimCgroup = cgroup
	value, err := proto.Marshal(o)
	if err != nil {
		return nil, errors.Wrap(err, "cannot write the runtime's options")
	}
	url := opts.GetTypeUrl()
	if url == "" {
		if url, err = runcOptionsURL(); err != nil {
			return nil, err
		}
	}
	return &anypb.Any{TypeUrl: url, Value: value}, nil
}

// runcOptionsURL is how clients name the type of runc's options.
func runcOptionsURL() (string, error) {
	url, err := typeurl.TypeURL(&runcoptions.Options{})
	return url, errors.Wrap(err, "cannot name the type of runc's options")
}
