// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/box"
	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// client is containerd's own suite of its client: it starts and restarts the containerd in PATH by itself.
var client = &suite.Suite{
	Name:    "client",
	About:   "containerd's integration/client, of the pinned version",
	Timeout: 40 * time.Minute,
	Prepare: func(k *suite.Kit, p *suite.Plan) error {
		dir, err := k.Containerd()
		if err != nil {
			return err
		}
		p.Shared = append(p.Shared, dir)
		p.Data["dir"] = filepath.Join(dir, "integration", "client")
		for name, b := range map[string]suite.Build{
			"client.test": {Package: "./integration/client", Test: true},
			"runc-fp":     {Package: "./integration/failpoint/cmd/runc-fp"},
		} {
			b.Name, b.Dir = name, dir
			if p.Programs[name], err = k.Build(b); err != nil {
				return err
			}
		}
		return nil
	},
	Run: func(ctx context.Context, s *suite.Site) error {
		if err := clientTests(ctx, s, suite.GoTest{}); err != nil {
			return err
		}
		path, err := withoutWarmShims()
		if err != nil {
			return err
		}
		const pipes = "^TestShimDoesNotLeakPipes$"
		err = clientTests(ctx, s, suite.GoTest{
			Label: "warm_limit=0: ", Only: pipes, Env: []string{"PATH=" + path + ":" + box.Path},
		})
		if err != nil {
			return err
		}
		// What leaks does so each time; the shims that are kept have their pipes once.
		return clientTests(ctx, s, suite.GoTest{Label: "after four others: ", Only: pipes, Rounds: 5})
	},
}

// clientTests runs the suite, or the part of it that g says.
func clientTests(ctx context.Context, s *suite.Site, g suite.GoTest) error {
	g.Name, g.Program, g.Dir, g.Timeout = "client", s.Program("client.test"), s.Data["dir"], 35*time.Minute
	g.Args = []string{"-test.root", "-no-criu", "-test.parallel=4"}
	if g.Only == "" {
		g.Skip = map[string]string{
			"TestExportAllCases/export_image_setting_ocispec.AnnotationRefName": "pulls an image by the digest that it has in its registry",
		}
	}
	return s.GoTest(ctx, g)
}

// withoutWarmShims makes a directory whose containerd is the one under test, with no shims kept: the suite writes the
// daemon's config itself, and the script there adds to it. Stock does not know the key.
func withoutWarmShims() (string, error) {
	const dir = box.Dir + "/without-warm-shims"
	const script = `#!/bin/sh
for arg; do
  [ "$last" = --config ] && printf '[plugins."io.containerd.shim.v1.manager"]\n  warm_limit = 0\n' >>"$arg"
  last=$arg
done
exec ` + box.Programs + `/containerd "$@"
`
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", errors.Wrap(err, "cannot make a directory for a program")
	}
	return dir, errors.Wrap(os.WriteFile(dir+"/containerd", []byte(script), 0o755), "cannot write a program")
}
