// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"context"
	"path/filepath"
	"time"

	"github.com/shimyard/shimyard/integration/conformance/box"
	"github.com/shimyard/shimyard/integration/conformance/kubelet"
	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// kubeletVersion is that in the go.mod of kubelet/upstream.
const kubeletVersion = "v1.37.0"

// pods is this module's own suite of kubelet, without a cluster.
var pods = &suite.Suite{
	Name:    "kubelet",
	About:   "kubelet " + kubeletVersion + " without a cluster: probes, init containers, deletion, restarts and stalls",
	Timeout: 40 * time.Minute,
	Prepare: func(k *suite.Kit, p *suite.Plan) (err error) {
		p.Programs["kubelet"], err = k.Build(suite.Build{
			Name: "kubelet", Dir: filepath.Join(k.Module, "kubelet", "upstream"), Package: "k8s.io/kubernetes/cmd/kubelet",
			Flags: []string{"-ldflags", "-X k8s.io/component-base/version.gitVersion=" + kubeletVersion},
		})
		if err != nil {
			return err
		}
		if p.Programs["kubelet.test"], err = k.Own("kubelet.test", "./kubelet", true); err != nil {
			return err
		}
		if err := runcWithSeccomp(k, p); err != nil {
			return err
		}
		return k.Network(p)
	},
	Run: func(ctx context.Context, s *suite.Site) error {
		if err := s.Network(ctx); err != nil {
			return err
		}
		for name, value := range kubelet.Sysctls {
			if err := box.Cover("/proc/sys/"+name, value+"\n"); err != nil {
				return err
			}
		}
		return s.GoTest(ctx, suite.GoTest{Name: "pods", Program: s.Program("kubelet.test"), Dir: "/",
			Timeout: 38 * time.Minute})
	},
}
