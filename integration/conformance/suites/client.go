// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"context"
	"path/filepath"
	"time"

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
	Run: clientTests,
}

func clientTests(ctx context.Context, s *suite.Site) error {
	return s.GoTest(ctx, suite.GoTest{
		Name: "client", Program: s.Program("client.test"), Dir: s.Data["dir"], Timeout: 35 * time.Minute,
		Args: []string{"-test.root", "-no-criu", "-test.parallel=4"},
		Skip: map[string]string{
			"TestExportAllCases/export_image_setting_ocispec.AnnotationRefName": "pulls an image by the digest that it has in its registry",
		},
	})
}
