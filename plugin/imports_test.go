// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/shimyard/shimyard"

// layers are the packages of the root module and what each may import of the others, with the reason.
var layers = map[string]struct {
	may    []string
	reason string
}{
	"plugin": {[]string{"manager", "shimclient"},
		"it wires and holds no logic: what is in a bundle is none of its business"},
	"plugin/shims": {[]string{"manager/inspect"},
		"it is a client, and not linked into a daemon's plugins"},
	"manager": {[]string{"bundle", "shimclient", "manager/inspect", "manager/internal/await",
		"manager/internal/failpoint", "manager/internal/features", "manager/internal/follow", "manager/internal/ledger",
		"manager/internal/life", "manager/internal/metrics", "manager/internal/mounts", "manager/internal/progress",
		"manager/internal/shimproc", "manager/internal/spans", "manager/internal/warm"},
		"it decides; whoever registers it is above it"},
	"manager/internal/await":     {nil, "it waits; for what is for the callers to say"},
	"manager/internal/failpoint": {nil, "it ends a daemon under test, wherever it is called from"},
	"manager/internal/features":  {[]string{"shimclient"}, "it asks a binary, and knows nothing of a container"},
	"manager/internal/follow":    {nil, "it hears; what is done about it is for the callers to say"},
	"manager/internal/ledger": {[]string{"bundle", "shimclient", "manager/internal/life"},
		"what is remembered of an instance: it must not know who asks, nor send or tell anything by itself"},
	"manager/internal/life":    {nil, "a table: it has no instance in hand and changes no state"},
	"manager/internal/metrics": {nil, "it counts; what is counted is for the callers to say"},
	"manager/internal/mounts": {[]string{"shimclient", "manager/internal/features", "manager/internal/shimproc"},
		"it mounts, and knows nothing of an instance"},
	"manager/internal/progress": {[]string{"shimclient"}, "notes: it does nothing by itself"},
	"manager/internal/spans":    {nil, "it names and begins spans; of what is for the callers to say"},
	"manager/internal/warm":     {nil, "an account: it has no process, no connection and no file in hand"},
	"manager/internal/shimproc": {[]string{"shimclient", "manager/internal/await", "manager/internal/metrics"},
		"one process and the way to it: it must not know who keeps records of what it serves"},
	"manager/inspect":     {nil, "what travels between a client and a daemon, and nothing else"},
	"bundle":              {nil, "files alone: it must be usable, and testable, without any process"},
	"shimclient":          {nil, "one process alone: it must not know where its caller keeps records"},
	"shimclient/shimtest": {[]string{"shimclient"}, "it plays the shim's side"},
	"shimclient/shimtest/fakeshim": {[]string{"shimclient/shimtest"},
		"it is the fake shim as a program, and nothing else"},
}

// testsMay are packages that only the tests of another may import.
var testsMay = map[string][]string{
	// Its lists of labels are held against those who say them.
	"manager/internal/metrics": {"manager/inspect", "manager/internal/shimproc", "manager/internal/warm"},
}

// forbidden must not be linked into a daemon by any package of ours, however indirectly. A trailing slash stands for
// all below it.
var forbidden = map[string]string{
	"github.com/containerd/containerd/v2/core/runtime/v2": "importing it registers the stock runtime, so that Register could not work",
	"github.com/containerd/containerd/v2/plugins/sandbox": "importing it registers the stock sandbox controller and imports core/runtime/v2",
	module + "/integration/":                              "it is a module of its own, so that its dependencies are not inherited",
	module + "/shimclient/shimtest":                       "it is for tests alone",
	"github.com/stretchr/testify/":                        "it is for tests alone",
}

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath                               string
	Imports, TestImports, XTestImports, Deps []string
}

// TestImports holds the packages of the root module to DESIGN: plugin → manager → {bundle, shimclient}, on every
// operating system.
func TestImports(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs the go command")
	}
	for _, goos := range []string{"linux", "windows", "darwin", "freebsd"} {
		t.Run(goos, func(t *testing.T) {
			packages := list(t, goos)
			require.NotEmpty(t, packages)
			for _, p := range packages {
				checkLayer(t, p)
				checkForbidden(t, p)
			}
		})
	}
}

func checkLayer(t *testing.T, p listed) {
	name := strings.TrimPrefix(p.ImportPath, module+"/")
	layer, known := layers[name]
	require.True(t, known, "package %s has no place in the layers: give it one here and say why", name)
	for _, imported := range within(p.Imports) {
		require.Contains(t, layer.may, imported, "%s must not import %s: %s", name, imported, layer.reason)
	}
	// Tests may use the fake shim as well.
	for _, imported := range within(slices.Concat(p.TestImports, p.XTestImports)) {
		if imported != name && imported != "shimclient/shimtest" && !slices.Contains(testsMay[name], imported) {
			require.Contains(t, layer.may, imported, "tests of %s must not import %s: %s", name, imported, layer.reason)
		}
	}
}

func checkForbidden(t *testing.T, p listed) {
	for path, reason := range forbidden {
		// The fake shim is itself for tests alone.
		if strings.HasPrefix(p.ImportPath, module+"/shimclient/shimtest") &&
			reason == forbidden[module+"/shimclient/shimtest"] {
			continue
		}
		for _, dep := range p.Deps {
			require.False(t, dep == path || strings.HasSuffix(path, "/") && strings.HasPrefix(dep+"/", path),
				"%s depends on %s: %s", p.ImportPath, dep, reason)
		}
	}
}

// within are the packages of the root module among the imports, without its name.
func within(imports []string) (out []string) {
	for _, i := range imports {
		if name, ok := strings.CutPrefix(i, module+"/"); ok {
			out = append(out, name)
		}
	}
	return out
}

// list describes all packages of the root module as they are on one operating system.
func list(t *testing.T, goos string) (out []listed) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports,Deps", "./...")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	for d := json.NewDecoder(strings.NewReader(string(b))); ; {
		var p listed
		err := d.Decode(&p)
		if err == io.EOF {
			return out
		}
		require.NoError(t, err)
		out = append(out, p)
	}
}
