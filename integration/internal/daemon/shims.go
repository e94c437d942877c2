// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shimyard/shimyard/shimclient"
)

// Shim is a shim process, or a helper of one.
type Shim struct {
	Process
	// Namespace and ID are what it was started with. The ID of a warm shim is no container's.
	Namespace, ID string
	// Serves are the ids, "NAMESPACE/ID", whose bundles name the address that the process listens at.
	Serves []string
	// Helper is for processes that start or delete.
	Helper bool
	// Idle is for warm shims on record, and their helpers, that no bundle names.
	Idle bool
}

// Shims lists the shim processes of the daemon, started by it or not.
func (d *Daemon) Shims() []Shim {
	listeners := listeners()
	serves := d.served()
	var list []Shim
	for _, p := range d.Processes() {
		if !p.Is("containerd-shim-") {
			continue
		}
		args := strings.Fields(p.Args)
		s := Shim{Process: p, Namespace: after(args, "-namespace"), ID: after(args, "-id")}
		s.Helper = slices.Contains([]string{"start", "delete"}, args[len(args)-1])
		for path := range listening(p.Pid, listeners) {
			if !s.Helper {
				s.Serves = append(s.Serves, serves[path]...)
			}
		}
		slices.Sort(s.Serves)
		s.Idle = len(s.Serves) == 0 && d.onRecord(s)
		list = append(list, s)
	}
	return list
}

// warmShims lists the directories of shims that wait for a task.
func (d *Daemon) warmShims() []string {
	return entries("warm shim", filepath.Join(d.Dir, "state", taskPlugin, "._*"), 0)
}

// after is the argument that follows a flag.
func after(args []string, flag string) string {
	if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// served finds the ids that are served at the sockets' paths, by the bundles.
func (d *Daemon) served() map[string][]string {
	serves := map[string][]string{}
	for _, plugin := range []string{taskPlugin, sandboxPlugin} {
		dirs, _ := filepath.Glob(filepath.Join(d.Dir, "state", plugin, "[^.]*", "*")) // well-formed
		for _, dir := range dirs {
			id := filepath.Base(filepath.Dir(dir)) + "/" + filepath.Base(dir)
			if path := socketOf(dir); path != "" && !slices.Contains(serves[path], id) {
				serves[path] = append(serves[path], id)
			}
		}
	}
	return serves
}

// socketOf is the path of the socket that a bundle names; "": none. One that is a link is followed.
func socketOf(dir string) string {
	var boot struct {
		Address string `json:"address"`
	}
	data, err := os.ReadFile(filepath.Join(dir, "bootstrap.json"))
	if err != nil || json.Unmarshal(data, &boot) != nil {
		data, _ = os.ReadFile(filepath.Join(dir, "address")) // of older shims
		boot.Address = string(data)
	}
	path := strings.TrimPrefix(boot.Address, "unix://")
	if target, err := os.Readlink(path); err == nil && !filepath.IsAbs(target) {
		return filepath.Join(filepath.Dir(path), target)
	} else if err == nil {
		return target
	}
	if strings.HasPrefix(path, "\x00") {
		return "@" + path[1:]
	}
	return path
}

// onRecord tells whether there is a warm shim's record of just this process, or of the launch that the helper is of.
func (d *Daemon) onRecord(s Shim) bool {
	var rec struct {
		Namespace string `json:"namespace"`
		Launch    struct {
			Token string `json:"token"`
		} `json:"launch"`
		Shim *struct {
			Pid int `json:"pid"`
		} `json:"shim"`
	}
	data, err := os.ReadFile(filepath.Join(d.Dir, "state", taskPlugin, "."+s.ID, "warm.json"))
	if err != nil || json.Unmarshal(data, &rec) != nil || !strings.HasPrefix(s.ID, "_") ||
		rec.Namespace != s.Namespace {
		return false
	}
	if rec.Shim != nil && rec.Shim.Pid != s.Pid && !s.Helper {
		return false
	}
	if s.Helper && strings.HasPrefix(shimclient.CarrierEnv(rec.Launch.Token), "OTEL_SERVICE_NAME=") {
		return true // it has the id on its command line, and gives it to what it runs
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.Pid))
	return err == nil && bytes.Contains(environ, []byte(shimclient.CarrierEnv(rec.Launch.Token)+"\x00"))
}

// listeners are the unix sockets of the machine that have a name and listen: inode and name.
func listeners() map[string]string {
	const listens = "00010000"
	found := map[string]string{}
	data, _ := os.ReadFile("/proc/net/unix") // always there
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) == 8 && f[3] == listens {
			found[f[6]] = f[7]
		}
	}
	return found
}

// listening are the names of the sockets that a process listens at.
func listening(pid int, listeners map[string]string) map[string]bool {
	found := map[string]bool{}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // well-formed
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil {
			continue // closed meanwhile
		}
		inode := strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")
		if name, ok := listeners[inode]; ok {
			found[name] = true
		}
	}
	return found
}
