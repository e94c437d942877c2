// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/images"
	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// criTools is the module of critest and crictl.
var criTools = suite.Source{
	Path: "sigs.k8s.io/cri-tools", Version: "v1.37.0", Sum: "h1:BmTImEoTX3KPXCLwmIU9mfCC8umUqF4R8WibY9eVU9Y=",
}

func prepareCRITools(k *suite.Kit, p *suite.Plan) error {
	dir, err := k.Dir(criTools)
	if err != nil {
		return err
	}
	for name, b := range map[string]suite.Build{
		"critest": {Package: "./cmd/critest", Test: true},
		"crictl":  {Package: "./cmd/crictl"},
	} {
		b.Name, b.Dir = name, dir
		if p.Programs[name], err = k.Build(b); err != nil {
			return err
		}
	}
	return k.Network(p)
}

// critest is the suite that Kubernetes has for whatever serves CRI.
var critest = &suite.Suite{
	Name:    "critest",
	About:   "critest of cri-tools " + criTools.Version,
	Timeout: 60 * time.Minute,
	Prepare: prepareCRITools,
	Run: func(ctx context.Context, s *suite.Site) error {
		return onBridge(ctx, s, func(d *suite.Daemon) error {
			if err := crictl(ctx, s, d); err != nil {
				return err
			}
			return s.Ginkgo(ctx, suite.Ginkgo{Name: "critest", Program: s.Program("critest"), Args: []string{
				"-ginkgo.v", "-runtime-endpoint=unix://" + d.Address, "-nri-socket=" + nriSocket,
			}})
		})
	},
}

const nriSocket = "/var/run/nri-test.sock"

// onBridge runs do with a daemon that serves CRI, with the bridge as the network of pods.
func onBridge(ctx context.Context, s *suite.Site, do func(d *suite.Daemon) error) error {
	if err := s.Network(ctx); err != nil {
		return err
	}
	return underCRI(ctx, s, criConfig, do)
}

// crictl asks with crictl what people ask first.
func crictl(ctx context.Context, s *suite.Site, d *suite.Daemon) error {
	log, err := s.Log("crictl.log")
	if err != nil {
		return err
	}
	defer log.Close()
	for _, command := range []string{"version", "info", "pods", "ps -a", "images", "stats", "statsp"} {
		args := append([]string{"--runtime-endpoint=unix://" + d.Address}, strings.Fields(command)...)
		s.ReportError("crictl "+command, s.Command(ctx, log, s.Program("crictl"), args...).Run())
	}
	return nil
}

// criBench is critest's benchmark. Its figures are notes; that it runs is what is tested.
var criBench = &suite.Suite{
	Name:    "cribench",
	About:   "critest's benchmark, of cri-tools " + criTools.Version,
	Timeout: 30 * time.Minute,
	Prepare: prepareCRITools,
	Images: func(parts *images.Parts) []images.Image {
		const prefix = "public.ecr.aws/docker/library/busybox:"
		return []images.Image{
			parts.Marked("1", prefix+"1"), parts.Marked("glibc", prefix+"1-glibc", prefix+"1.35.0-glibc"),
			parts.Marked("musl", prefix+"1-musl"), parts.Marked("uclibc", prefix+"1-uclibc"),
		}
	},
	Run: func(ctx context.Context, s *suite.Site) error {
		const params = "/tmp/benchmark.yaml"
		text := "containersNumber: 60\ncontainersNumberParallel: 2\npodsNumber: 40\npodsNumberParallel: 2\nimagesNumber: 20\n" +
			"containerBenchmarkTimeoutSeconds: 120\npodBenchmarkTimeoutSeconds: 120\nimageBenchmarkTimeoutSeconds: 120\n"
		if err := os.WriteFile(params, []byte(text), 0o644); err != nil {
			return errors.Wrap(err, "cannot write the benchmark's parameters")
		}
		err := onBridge(ctx, s, func(d *suite.Daemon) error {
			return s.Ginkgo(ctx, suite.Ginkgo{Name: "cribench", Program: s.Program("critest"), Args: []string{
				"-runtime-endpoint=unix://" + d.Address, "-benchmark", "-benchmarking-params-file=" + params,
				"-benchmarking-output-dir=" + s.Out,
			}})
		})
		if err != nil {
			return err
		}
		return noteBenchmarks(s)
	},
}

// noteBenchmarks notes the median of each operation.
func noteBenchmarks(s *suite.Site) error {
	files, _ := filepath.Glob(filepath.Join(s.Out, "*benchmark*.json")) // the pattern is well-formed
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return errors.Wrap(err, "cannot read a benchmark's result")
		}
		var set struct {
			OperationsNames []string
			Datapoints      []struct{ OperationsDurationsNs []int64 }
		}
		if err := json.Unmarshal(data, &set); err != nil {
			return errors.Wrapf(err, "cannot read %s", file)
		}
		for i, name := range set.OperationsNames {
			var all []time.Duration
			for _, p := range set.Datapoints {
				if i < len(p.OperationsDurationsNs) {
					all = append(all, time.Duration(p.OperationsDurationsNs[i]))
				}
			}
			if len(all) == 0 {
				return errors.Errorf("%s has no samples of %s", file, name)
			}
			slices.Sort(all)
			s.Note("%s: median %v of %d", name, all[len(all)/2].Round(10*time.Microsecond), len(all))
		}
	}
	return nil
}
