# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# V=1 prints every test by name. POOL is the mode of the pool of warm shims that daemons are tested in. FUZZTIME is how long each fuzz
# target runs. PKG narrows unit, race and fuzz to some packages of the root module, RUN narrows unit, race and integration to some tests.
# ATONCE is how many integration tests run at a time: more than there are processors, since most of them wait for deadlines of a daemon.
V        ?=
FUZZTIME ?= 60s
PKG      ?= ./...
RUN      ?=
ATONCE   ?= 4
CHAOS_TIME ?= 3m
CHAOS_SEED ?=
SIDE     ?=
BENCH    ?=
README   ?=

# Whoever says how shims are kept warm says it to the tests.
POOL ?=
export POOL

TESTFLAGS = $(if $(V),-v) $(if $(RUN),-run '$(RUN)')

# The daemon's version names the commit that it was built from, where git can tell it (it refuses in a checkout that belongs to
# another user).
ifneq ($(shell git status --porcelain >/dev/null 2>&1 && echo ok),ok)
export GOFLAGS += -buildvcs=false
endif

.DEFAULT_GOAL := help
.PHONY: help build test check unit race lint vuln reference monitoring cross fuzz integration conformance conformance-cri conformance-quick scale chaos soak pools nightly bench dashboard microbench tools demo clean

help: ## show this list
	@echo "Shimyard: a containerd whose task runtime is ours."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  V=1            print every test by name"
	@echo "  RUN=TestName   only the tests whose names match (unit, race, integration, conformance-SUITE)"
	@echo "  SIDE=ours      conformance-SUITE against ours, or stock, alone"
	@echo "  ATONCE=4       how many integration tests run at a time"
	@echo "  PKG=./bundle   only these packages (unit, race, fuzz)"
	@echo "  CHAOS_TIME=3m  how long chaos runs; CHAOS_SEED=1 makes it plan what it planned with that seed"
	@echo "  POOL=off       integration, chaos, scale and soak without warm shims; POOL=share8: with up to 8 tasks in one shim"
	@echo "  FUZZTIME=60s   how long each fuzz target runs"
	@echo "  BENCH='...'    flags for bench: -bench.only=latency,throughput -bench.rounds=20 -bench.profile=DIR -bench.out=DIR"
	@echo "  README=1       bench puts its short table into README.md, too, and conformance its table into integration/README.md"

build: ## build the daemon, bin/containerd (needs nothing but Go)
	@mkdir -p bin
	CGO_ENABLED=0 go -C integration build -o ../bin/containerd ./containerd

test: ## everything that CI runs; what needs root says so when it is skipped
	@bash hack/test.sh

check: lint unit ## lint and unit tests without the race detector: before each commit

unit: ## unit tests
	go test -timeout 30m $(TESTFLAGS) $(PKG)

race: ## unit tests with the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race -timeout 30m $(TESTFLAGS) $(PKG)

lint: build ## gofmt, licence headers, go vet, staticcheck, checklocks, known vulnerabilities
	@bash hack/lint.sh

vuln: build ## known vulnerabilities in what is linked into the daemon; VULNDB=latest asks the newest database
	@bash hack/vuln.sh

reference: ## write .github/docs/config.md from the config structs and their comments
	go test -count=1 ./plugin -run '^TestConfigReference$$' -write

monitoring: ## the alerts and the dashboard, held to Prometheus's parsers and to the metrics of the code
	go -C hack/monitoring test ./...

cross: ## compile and vet every package for linux, windows, darwin and freebsd, on amd64 and arm64
	@bash hack/cross.sh

fuzz: ## run each fuzz target for FUZZTIME
	@bash hack/fuzz.sh $(FUZZTIME) $(PKG)

integration: ## tests against real shims, runc and stock containerd, as root (needs a C compiler for runc)
	go -C integration test -count=1 -p 1 -parallel $(ATONCE) -timeout 40m -v $(if $(RUN),-run '$(RUN)') ./...

# One suite of other people's, against stock containerd and this one, as root. A target that has no recipe here has that of the pattern.
conformance-client: ## containerd's suite of its client
conformance-docker: ## dockerd: restart policies, live-restore, exits while a daemon is down
conformance-kubelet: ## kubelet without a cluster: probes, init containers, deletion, restarts and stalls
conformance-nri: ## a plugin of NRI
conformance-shims: ## shims that others wrote, unmodified: runc's of five releases, Rust's (which needs cargo)
conformance-buildkit: ## buildkitd: steps, exit codes, mounts, cancelled builds, restarts
conformance-%:
	go -C integration/conformance run ./cmd/conformance $(if $(RUN),-run '$(RUN)') $(if $(SIDE),-side $(SIDE)) $*

# The part that `make test` runs: quick, and never flaky with either side.
QUICK = ContainerStart ContainerStartWithAbsRuntimePath ContainerOutput ContainerPTY ContainerExec ContainerPids \
  ContainerCloseIO ContainerAttach ContainerAttachProcess ContainerWait ContainerKill ContainerKillAll \
  ContainerKillInitPidHost KillContainerDeletedByRunc ContainerMetrics DeletedContainerMetrics \
  ContainerNoBinaryExists ContainerExecNoBinaryExists ContainerLoadUnexistingProcess ContainerRuntimeOptionsv2 \
  DaemonRestart DaemonRestartWithRunningShim DaemonReconnectsToShimIOPipesOnRestart DeleteRunningContainer \
  DeleteContainerExecCreated WaitStoppedTask WaitStoppedProcess TaskForceDelete ProcessForceDelete TaskUpdate \
  TaskResize TaskSpec ShimInCgroup ShimOOMScore ShimSockLength ShimDoesNotLeakSockets ShortRunningTaskPid \
  UserNamespaces RegressionIssue4769 RegressionIssue6429 Issue9103 Issue13030

conformance-quick:
	go -C integration/conformance run ./cmd/conformance nri
	go -C integration/conformance run ./cmd/conformance -run '^Test($(shell echo $(QUICK) | tr ' ' '|'))$$' client

conformance-cri: ## both suites that CRI has, and critest's benchmark
	go -C integration/conformance run ./cmd/conformance $(if $(RUN),-run '$(RUN)') $(if $(SIDE),-side $(SIDE)) cri critest cribench

conformance: ## other people's suites against stock containerd and this one, as root; an hour, and half of one more to build them first; make conformance-client runs one
	go -C integration/conformance run ./cmd/conformance $(if $(README),-readme $(CURDIR)/integration/README.md) all

chaos: ## random operations and faults for CHAOS_TIME, everything checked after each round, as root; CHAOS_SEED replays
	go -C integration test -count=1 -run '^TestChaos$$' -timeout 0 -v . -chaos.time=$(CHAOS_TIME) $(if $(CHAOS_SEED),-chaos.seed=$(CHAOS_SEED))

scale: ## hundreds of containers, stalled shims, a long downtime, as root; some minutes and 8 GB of memory; before each release
	SHIMYARD_SCALE=1 go -C integration test -count=1 -timeout 40m -run '^TestScale' -v .

soak: ## 10,000 rounds of create, start, kill, delete against real runc, as root; the daemon must end as it began
	SHIMYARD_SOAK=10000 go -C integration test -count=1 -run '^TestSoak' -timeout 2h -v .

pools: ## the integration tests without warm shims, and with up to 8 tasks in one shim
	$(MAKE) integration POOL=off
	$(MAKE) integration POOL=share8

nightly: ## the longer suites: ten minutes of chaos in each mode of the pool, pools, scale, soak, two releases compared, a real node
	$(MAKE) chaos CHAOS_TIME=10m
	$(MAKE) chaos CHAOS_TIME=10m POOL=off
	$(MAKE) chaos CHAOS_TIME=10m POOL=share8
	$(MAKE) pools
	$(MAKE) scale
	$(MAKE) soak
	go -C hack/package test -count=1 -timeout 60m -v ./...
	$(MAKE) vm-short

bench: ## measure beside stock containerd and bare runc, as root, on an idle machine; writes integration/bench/; 20 minutes, 6 GB
	@bash hack/bench.sh $(if $(README),-bench.readme=$(CURDIR)/README.md) $(BENCH)

dashboard: ## draw the dashboard over a daemon's life, as root, into .github/docs/dashboard.png (Prometheus is unpacked, not installed)
	SHIMYARD_DASHBOARD=$(CURDIR)/.github/docs/dashboard.png go -C integration test -count=1 -timeout 20m -run '^TestDrawDashboard$$' -v .

microbench: ## the hot paths inside the daemon, with allocations
	go test -p 1 -run '^$$' -bench . -benchmem ./manager ./bundle ./shimclient

tools: ## build or unpack into bin/tools what the integration tests run against; nothing is installed
	go -C integration run ./cmd/tools

.PHONY: package release containerd vm vm-short vm-demo
package: ## build the Debian package into bin/package
	@bash hack/package.sh deb

release: ## build .deb, .rpm, archive, bill of materials and checksums into bin/package; the same commit gives the same bytes
	@bash hack/package.sh release

containerd: ## build and test against VERSION=v2.4.1 of containerd, in a copy
	@bash hack/containerd.sh $(VERSION)

vm: ## a real node in a virtual machine, as root: packages, reboot, 20 power cuts, full disks, pods; long where there is no KVM
	SHIMYARD_VM=1 go -C integration test -count=1 -parallel 3 -timeout 3h -v $(if $(RUN),-run '$(RUN)') ./vm

vm-short: ## a part of vm: the package, and one power cut
	SHIMYARD_VM=short go -C integration test -count=1 -parallel 3 -timeout 1h -v -run '^Test(Package|PowerCuts)$$' ./vm

vm-demo: ## a console on that machine, with everything installed (as root)
	go -C integration run ./vm/console

demo: ## run a container, restart the daemon under it, see it go on (as root)
	@bash hack/demo.sh

clean: ## remove what make built
	rm -rf bin
