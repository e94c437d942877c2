// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package box runs a program in a machine of its own: private mount, pid, network, ipc, uts and cgroup namespaces
// over the file system of the machine that it runs on, whose files it sees and cannot change.
//
// What is written inside goes to memory, and is gone with the last process. The exceptions are named in [Spec]. The
// network has a loopback device and another with a default route that leads nowhere, the names in Spec.Hosts lead to
// loopback, and whatever else is asked for fails at once.
//
// Not private, since Linux has one of each: /dev (loop devices are the machine's), the clock, and those sysctls that
// belong to no namespace.
package box

import (
	"encoding/json"
	"io"
	"os"

	"github.com/pkg/errors"
)

// Spec says what a box holds and what runs in it.
type Spec struct {
	// Layers are directories that are merged over the machine's files, the first one on top.
	Layers []string
	// Shared are directories of the machine that are seen at the same path, read-only, also where a file system of
	// their own holds them.
	Shared []string
	// Out is one directory of the machine that the program may write to.
	Out string
	// Hosts are names that resolve to 127.0.0.1.
	Hosts []string
	// Trusted is a PEM bundle of certificates that programs inside trust beside the machine's.
	Trusted []byte
	// Args are the arguments of the program, which is a copy of the one that calls Run. It must call Dispatch.
	Args []string
	// Env is the whole environment of the program.
	Env []string
	// Stdout and Stderr take what the program and its children write.
	Stdout, Stderr io.Writer `json:"-"`

	dir     string   // the mountpoint, on the machine
	cgroups []string // the directories of the box, one in each hierarchy
}

// Dir is a directory in each box that belongs to the project, Programs the one of programs that comes first in PATH.
const (
	Dir      = "/conformance"
	Programs = Dir + "/bin"
)

// Path is the value of PATH inside.
const Path = Programs + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Address is that of the device with the default route: the node's.
const Address = "192.0.2.2"

// wire is what the first process of a box is told.
type wire struct {
	Spec
	Dir     string
	Cgroups []string
}

const wireEnv = "SHIMYARD_BOX"

func (s *Spec) encode() (string, error) {
	data, err := json.Marshal(wire{Spec: *s, Dir: s.dir, Cgroups: s.cgroups})
	return string(data), errors.Wrap(err, "cannot tell the box what it is")
}

func decode() (*Spec, error) {
	var w wire
	if err := json.Unmarshal([]byte(os.Getenv(wireEnv)), &w); err != nil {
		return nil, errors.Wrap(err, "cannot read what the box is")
	}
	s := w.Spec
	s.dir, s.cgroups = w.Dir, w.Cgroups
	return &s, nil
}
