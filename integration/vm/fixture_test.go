// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package vm tries Shimyard on a real node: Debian with systemd and cgroup v2 in a virtual machine, installed from its
// package.
//
// Each check is a test or subtest with a name, and what its scripts said is kept in bin/vm/results under that name.
// Each makes its node ready itself, so that any of them can be run alone (make vm RUN=TestNode/AppArmor). They need
// root, qemu and mmdebstrap, and are skipped without SHIMYARD_VM; "short" there leaves the longer steps out.
//
// SHIMYARD_VM_PAYLOAD names the payload of an earlier run (bin/vm/payload), so that work on the checks alone need not
// build it again. SHIMYARD_VM_CPUS is the number of a machine's CPUs: 2 with KVM, else 1. SHIMYARD_VM_CUTS and
// SHIMYARD_VM_SEED are for TestPowerCuts. How many machines run at a time is -parallel's business: three keep two CPUs
// of the host busy, since each of them waits for a part of its time.
package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shimyard/shimyard/integration/internal/tools"
	"github.com/shimyard/shimyard/integration/vm/machine"
	"github.com/shimyard/shimyard/integration/vm/payload"
)

// dirs are below bin/vm of the repository: the cache of images, the machine's, and what the checks leave to read.
type dirs struct{ cache, run, results string }

// built is what all machines share.
var built = sync.OnceValues(func() (*shared, error) {
	t, err := tools.New(os.Stderr)
	if err != nil {
		return nil, err
	}
	base := filepath.Join(filepath.Dir(t.Module), "bin", "vm")
	b := &shared{dirs: dirs{cache: base, run: filepath.Join(base, "run"), results: filepath.Join(base, "results")}}
	if err := lock(base); err != nil {
		return nil, err
	}
	for _, dir := range []string{b.dirs.run, b.dirs.results} {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if b.debian, err = machine.Build(b.dirs.cache, os.Stderr); err != nil {
		return nil, err
	}
	start := time.Now()
	dir := os.Getenv("SHIMYARD_VM_PAYLOAD")
	if dir == "" {
		dir = filepath.Join(base, "payload")
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
		if err := payload.Build(t, dir); err != nil {
			return nil, err
		}
	}
	b.payload = filepath.Join(b.dirs.run, "payload")
	if err := machine.Disk(b.payload, dir, payload.Size); err != nil {
		return nil, err
	}
	b.ready, err = b.debian.Install(filepath.Join(b.dirs.run, "ready"),
		filepath.Join(dir, payload.Stock), filepath.Join(dir, payload.Ours))
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "vm: packages and disks took %.0f s; machines run under %s\n",
		time.Since(start).Seconds(), machine.Accelerator())
	return b, nil
})

// lock keeps a second run out of the directory until this process ends.
func lock(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return errors.Wrap(err, "cannot make the machines' directory")
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Wrap(err, "cannot open the machines' directory")
	}
	return errors.Wrapf(unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB), "another run uses %s", dir)
}

type shared struct {
	dirs          dirs
	debian, ready *machine.Image // as Debian has it; with containerd of the pinned release and our package
	payload       string
}

// running is the machine of the image ready, booted and with all that node_ready sees to, to go on from: most checks
// need no boot of their own.
var running = sync.OnceValues(func() (*machine.Image, error) {
	b, err := built()
	if err != nil {
		return nil, err
	}
	m, err := machine.New(b.ready, filepath.Join(b.dirs.run, "first"), b.payload)
	if err != nil {
		return nil, err
	}
	defer m.Cut()
	m.Library = payload.Library
	if err := m.Start(); err != nil {
		return nil, err
	}
	output, exit, err := m.Script("node_ready", limit)
	if err != nil || exit != 0 {
		return nil, errors.Errorf("the first machine does not become ready: exit %d, %v: %s", exit, err, output)
	}
	return m.Snapshot(filepath.Join(b.dirs.run, "running"))
})

// short tells that a part of the checks is enough (make vm-short).
func short() bool { return os.Getenv("SHIMYARD_VM") == "short" }

// node is a machine and the checks' way to it.
type node struct {
	*machine.Machine
	b *shared
}

// newNode is a machine that is on, with containerd of the pinned release and our package on it, whose daemon runs and
// has the image.
func newNode(t *testing.T, name string) *node {
	n := nodeOf(t, name, func(*shared) (*machine.Image, error) { return running() })
	n.boot(t)
	return n
}

// newBootedNode is the same with so many MiB of memory, booted for itself.
func newBootedNode(t *testing.T, name string, memory int) *node {
	n := nodeOf(t, name, func(b *shared) (*machine.Image, error) { return b.ready, nil })
	n.Memory = memory
	n.boot(t)
	n.sh(t, "node_ready")
	return n
}

// newDebianNode is a machine that is off, with Debian's containerd on it and nothing of ours.
func newDebianNode(t *testing.T, name string) *node {
	return nodeOf(t, name, func(b *shared) (*machine.Image, error) { return b.debian, nil })
}

func nodeOf(t *testing.T, name string, image func(*shared) (*machine.Image, error)) *node {
	if os.Getenv("SHIMYARD_VM") == "" {
		t.Skip("boots virtual machines for minutes: make vm, or make vm-short for a part of it")
	}
	require.Zero(t, os.Getuid(), "building the machine's image needs root")
	require.NoError(t, machine.Missing())
	b, err := built()
	require.NoError(t, err)
	img, err := image(b)
	require.NoError(t, err)
	m, err := machine.New(img, filepath.Join(b.dirs.run, name), b.payload)
	require.NoError(t, err)
	m.Library = payload.Library
	t.Cleanup(func() {
		require.NoError(t, m.Remove())
		t.Logf("the machine has used %.0f s of CPU", m.CPU.Seconds())
	})
	return &node{Machine: m, b: b}
}

// boot starts the machine if it is off.
func (n *node) boot(t *testing.T) {
	if n.On() {
		return
	}
	start, used := time.Now(), n.UsedCPU()
	require.NoError(t, n.Start())
	n.record(t, fmt.Sprintf("# on after %.1f s, %.1f s of CPU: boot %s\n", time.Since(start).Seconds(),
		(n.UsedCPU()-used).Seconds(), n.Boot))
}

// sh runs a script that must succeed, and returns what it said.
func (n *node) sh(t *testing.T, script string) string {
	t.Helper()
	output, exit := n.try(t, script)
	require.Zero(t, exit, "%s\n%s", strings.TrimSpace(script), output)
	return output
}

// limit keeps a script that hangs from hanging for ever; on a busy host without KVM everything takes its time.
const limit = 20 * time.Minute

// try runs a script that may fail.
func (n *node) try(t *testing.T, script string) (string, int) {
	t.Helper()
	start, used := time.Now(), n.UsedCPU()
	output, exit, err := n.Script(script, limit)
	n.record(t, fmt.Sprintf("$ %s\n%s# exit %d after %.1f s, %.1f s of CPU\n", strings.TrimSpace(script), output, exit,
		time.Since(start).Seconds(), (n.UsedCPU()-used).Seconds()))
	if err != nil {
		// Best effort, for the person who reads it.
		state, _, _ := n.Script("systemctl status containerd --no-pager -n 50; ps axf", time.Minute)
		n.record(t, state)
	}
	require.NoError(t, err, "%s\n%s", strings.TrimSpace(script), output)
	return output, exit
}

// record appends to the file of the check's name.
func (n *node) record(t *testing.T, text string) {
	path := filepath.Join(n.b.dirs.results, strings.ReplaceAll(t.Name(), "/", "-")+".log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	require.NoError(t, err)
	_, err = f.WriteString(text)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}
