// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Command console opens the console of the virtual machine that the checks run in, with everything installed, for a
// person to try things on. The machine is gone when it is powered off.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/internal/tools"
	"github.com/shimyard/shimyard/integration/vm/machine"
	"github.com/shimyard/shimyard/integration/vm/payload"
)

func main() {
	if err := open(); err != nil {
		fmt.Fprintln(os.Stderr, "vm-demo:", err)
		os.Exit(1)
	}
}

func open() error {
	if err := machine.Missing(); err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("building the machine's image needs root")
	}
	t, err := tools.New(os.Stderr)
	if err != nil {
		return err
	}
	cache := filepath.Join(filepath.Dir(t.Module), "bin", "vm")
	img, err := machine.Build(cache, os.Stderr)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(cache, "demo-")
	if err != nil {
		return errors.Wrap(err, "cannot make a directory for the machine")
	}
	defer os.RemoveAll(dir)
	fmt.Fprintln(os.Stderr, "vm-demo: building the packages …")
	files := filepath.Join(dir, "files")
	if err := payload.Build(t, files); err != nil {
		return err
	}
	disk := filepath.Join(dir, "payload")
	if err := machine.Disk(disk, files, payload.Size); err != nil {
		return err
	}
	img, err = img.Install(filepath.Join(dir, "image"),
		filepath.Join(files, payload.Stock), filepath.Join(files, payload.OursNewer))
	if err != nil {
		return err
	}
	m, err := machine.New(img, filepath.Join(dir, "machine"), disk)
	if err != nil {
		return err
	}
	m.Library = payload.Library
	fmt.Fprintf(os.Stderr, "vm-demo: booting the machine once, under %s …\n", machine.Accelerator())
	if err := prepare(m); err != nil {
		return err
	}
	cmd := exec.Command("qemu-system-x86_64", m.Console()...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return errors.Wrap(cmd.Run(), "qemu")
}

// prepare boots the machine once, has it become ready, and leaves the text for the login.
func prepare(m *machine.Machine) error {
	if err := m.Start(); err != nil {
		return err
	}
	script := payload.DemoReady + "cat >/etc/motd <<'TEXT'\n" + payload.DemoText() + "TEXT\n"
	output, exit, err := m.Script(script, 10*time.Minute)
	if err != nil || exit != 0 {
		m.Cut()
		return errors.Errorf("the machine does not become ready: exit %d, %v: %s", exit, err, output)
	}
	return m.Shutdown()
}
