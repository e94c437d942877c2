// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package payload

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/internal/tools"
)

// criTools is the module of crictl, as the conformance suites have it.
const (
	criTools    = "sigs.k8s.io/cri-tools@v1.37.0"
	criToolsSum = "h1:BmTImEoTX3KPXCLwmIU9mfCC8umUqF4R8WibY9eVU9Y="
)

// crictl builds CRI's command line client in its own module, out of the module cache, so that this module need not ask
// for what it asks for.
func crictl(t *tools.Tools, dst string) error {
	cmd := exec.Command("go", "mod", "download", "-json", criTools)
	cmd.Dir = t.Module
	out, err := cmd.Output()
	if err != nil {
		return errors.Wrapf(err, "cannot download %s: %s", criTools, out)
	}
	var module struct{ Dir, Sum string }
	if err := json.Unmarshal(out, &module); err != nil {
		return errors.Wrapf(err, "cannot tell where %s is", criTools)
	}
	if module.Sum != criToolsSum {
		return errors.Errorf("%s has the checksum %s, not %s", criTools, module.Sum, criToolsSum)
	}
	build := exec.Command("go", "build", "-o", filepath.Clean(dst), "./cmd/crictl")
	build.Dir = module.Dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly -buildvcs=false")
	out, err = build.CombinedOutput()
	return errors.Wrapf(err, "cannot build crictl: %s", out)
}
