// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"context"
	"path"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"
)

// BinaryCheck says what is done about a shim binary that others than root and the daemon's own user could replace.
type BinaryCheck string

const (
	// CheckOff does not look.
	CheckOff BinaryCheck = "off"
	// CheckWarn logs it, once for each content of the file.
	CheckWarn BinaryCheck = "warn"
	// CheckRefuse does not start it.
	CheckRefuse BinaryCheck = "refuse"
)

// BinaryChecks are all, the default first.
var BinaryChecks = []BinaryCheck{CheckWarn, CheckOff, CheckRefuse}

// Policy says which shim binaries may be started for a client. It is not asked for the `delete` of a shim that runs
// already: what was created under an earlier policy is cleaned up. Where another binary is to run that `delete`, since
// the shim's own is gone, AdmitStandIn is asked. Safe for concurrent use.
type Policy struct {
	allowed []string
	check   BinaryCheck

	mu     sync.Mutex // guards warned
	warned map[FileID]bool
}

// NewPolicy makes a policy. allowed are patterns as of path.Match, of which one must match the runtime's name or the
// path of its binary; none allows all. A malformed pattern is an InvalidArgument error.
func NewPolicy(allowed []string, check BinaryCheck) (*Policy, error) {
	for _, pattern := range allowed {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, errors.Wrapf(errdefs.ErrInvalidArgument, "pattern %q: %v", pattern, err)
		}
	}
	return &Policy{allowed: allowed, check: check, warned: make(map[FileID]bool)}, nil
}

// Admit tells whether a binary may be started; PermissionDenied says why not. It looks at the file system each time:
// what was admitted may have changed since. Where it finds nothing, no other user can put another file in the place of
// the one that it has looked at, so that what is started right after it is that file.
func (p *Policy) Admit(ctx context.Context, b Binary) error {
	if !p.allows(b) {
		return errors.Wrapf(errdefs.ErrPermissionDenied,
			"runtime %q (%s) is not allowed; add it to allowed_runtimes to allow it", b.Runtime, b.Path)
	}
	return p.checkOwners(ctx, b)
}

// AdmitStandIn tells whether a binary may run the `delete` of a shim that another binary has started; PermissionDenied
// says why not. Which runtimes are allowed does not matter: no client has a shim started by it.
func (p *Policy) AdmitStandIn(ctx context.Context, b Binary) error { return p.checkOwners(ctx, b) }

func (p *Policy) checkOwners(ctx context.Context, b Binary) error {
	if p.check == CheckOff {
		return nil
	}
	err := checkOwners(b.Path)
	if err == nil {
		return nil
	}
	if p.check == CheckRefuse {
		return errors.Wrapf(errdefs.ErrPermissionDenied,
			"shim binary %s is not started: %v; correct that, or set binary_check", b.Path, err)
	}
	p.mu.Lock()
	news := !p.warned[b.File]
	p.warned[b.File] = true
	p.mu.Unlock()
	if news {
		log.G(ctx).WithError(err).WithField("shim", b.Path).
			Warn("others could replace this shim binary, which runs with the daemon's rights (binary_check = \"refuse\" would not start it)")
	}
	return nil
}

func (p *Policy) allows(b Binary) bool {
	if len(p.allowed) == 0 {
		return true
	}
	for _, pattern := range p.allowed {
		for _, name := range []string{b.Runtime, filepath.ToSlash(b.Path)} {
			if ok, _ := path.Match(pattern, name); ok { // the patterns were checked
				return true
			}
		}
	}
	return false
}
