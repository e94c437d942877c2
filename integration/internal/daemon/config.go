// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/pkg/errors"
)

// Options says what a daemon is started with. The zero value of a field means
// what its comment says.
type Options struct {
	// Binary is the containerd to run.
	Binary string
	// Path holds the directories that stand before the machine's own in PATH:
	// the shim's and runc's.
	Path []string
	// Env is added to the daemon's environment.
	Env []string
	// ShimEnv is the env of the shim manager's section.
	ShimEnv []string
	// Plugins holds what is loaded beyond tasks, images and the overlay
	// snapshotter: "cri", "nri", "restart", "tracing".
	Plugins []string
	// WarmIdle is the warm_idle of the shim manager's section; empty: so
	// little that idle shims are soon told from what a test leaves behind.
	WarmIdle string
	// Version is the version of the config file; 0: 4.
	Version int
	// Extra is appended to the config file.
	Extra string
	// LogLevel is containerd's; empty: info.
	LogLevel string
	// Parent is where the daemon's directory is made; empty: /tmp.
	Parent string
	// PrivateRun gives the daemon, and with it its shims, a mount namespace
	// with an empty /run: shims before containerd 2.3 put their sockets into
	// /run/containerd/s whatever they are told.
	PrivateRun bool
}

func (o *Options) wants(plugin string) bool {
	for _, p := range o.Plugins {
		if p == plugin {
			return true
		}
	}
	return false
}

// disabled lists the plugins not asked for: they cost start-up time or
// write outside of the daemon's directory.
func (o *Options) disabled() []string {
	list := []string{
		"io.containerd.differ.v1.erofs",
		"io.containerd.image-verifier.v1.bindir",
		"io.containerd.mount-handler.v1.erofs",
		"io.containerd.snapshotter.v1.blockfile",
		"io.containerd.snapshotter.v1.btrfs",
		"io.containerd.snapshotter.v1.devmapper",
		"io.containerd.snapshotter.v1.erofs",
		"io.containerd.snapshotter.v1.native",
		"io.containerd.snapshotter.v1.zfs",
	}
	if !o.wants("tracing") {
		list = append(list,
			"io.containerd.tracing.processor.v1.otlp",
			"io.containerd.internal.v1.tracing")
	}
	if !o.wants("cri") {
		list = append(list,
			"io.containerd.cri.v1.images",
			"io.containerd.cri.v1.runtime",
			"io.containerd.grpc.v1.cri",
			"io.containerd.sandbox.controller.v1.podsandbox")
	}
	if !o.wants("nri") {
		list = append(list, "io.containerd.nri.v1.nri")
	}
	if !o.wants("restart") {
		list = append(list, "io.containerd.monitor.container.v1.restart")
	}
	return list
}

// TTRPC, debug and gRPC have had sections of their own under plugins since
// version 4.
var configTemplate = template.Must(template.New("config").Funcs(template.FuncMap{"list": tomlList}).Parse(`
version = {{.Version}}
root = '{{.Dir}}/root'
state = '{{.Dir}}/state'
temp = '{{.Dir}}/tmp'
imports = []
disabled_plugins = {{list .Disabled}}
{{if ge .Version 4}}
[plugins.'io.containerd.server.v1.grpc']
address = '{{.Dir}}/c.sock'
[plugins.'io.containerd.server.v1.ttrpc']
address = '{{.Dir}}/c.ttrpc'
[plugins.'io.containerd.server.v1.debug']
address = '{{.Dir}}/d.sock'
{{else}}
[grpc]
address = '{{.Dir}}/c.sock'
[ttrpc]
address = '{{.Dir}}/c.ttrpc'
[debug]
address = '{{.Dir}}/d.sock'
{{end}}
[plugins.'io.containerd.internal.v1.opt']
path = '{{.Dir}}/opt'
[plugins.'io.containerd.shim.v1.manager']
socket_dir = '{{.Dir}}/s'
env = {{list .ShimEnv}}
warm_idle = '{{.WarmIdle}}'
# Other tests run beside this one.
warm_memory_percent = 0
warm_available_percent = 0
warm_pressure_percent = 0
{{if .NRI}}
[plugins.'io.containerd.nri.v1.nri']
socket_path = '{{.Dir}}/nri.sock'
plugin_path = '{{.Dir}}/nri'
plugin_config_path = '{{.Dir}}/nri-conf'
{{end}}
{{.Extra}}
`))

// writeConfig renders the config file into the daemon's directory.
func (d *Daemon) writeConfig() error {
	version := d.opts.Version
	if version == 0 {
		version = 4
	}
	var buf bytes.Buffer
	err := configTemplate.Execute(&buf, map[string]any{
		"Version": version, "Dir": d.Dir, "Disabled": d.opts.disabled(), "ShimEnv": d.opts.ShimEnv,
		"WarmIdle": d.warmIdle(),
		"NRI":      d.opts.wants("nri"), "Extra": strings.ReplaceAll(d.opts.Extra, "{{.Dir}}", d.Dir),
	})
	if err != nil {
		return errors.Wrap(err, "cannot render the daemon's config")
	}
	config, err := withPool(buf.String(), d.opts.Binary)
	if err != nil {
		return err
	}
	return errors.Wrap(os.WriteFile(d.configPath(), []byte(config), 0o600), "cannot write the daemon's config")
}

// shortIdle is soon enough for idle shims to be told from what a test leaves
// behind.
const shortIdle = "1s"

func (d *Daemon) warmIdle() string { return cmp.Or(d.opts.WarmIdle, shortIdle) }

func (d *Daemon) configPath() string { return filepath.Join(d.Dir, "config.toml") }

func tomlList(items []string) string {
	quoted := make([]string, len(items))
	for i, item := range items {
		quoted[i] = fmt.Sprintf("%q", item)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
