// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"os"
	"path/filepath"
	"testing"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/typeurl/v2"
	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/life"
)

// TestMendRuncOptions: what a runc shim's delete reads in the bundle, and finds runc's state by, is damaged, and the
// shim is dead.
func TestMendRuncOptions(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "runc")
	require.NoError(t, os.MkdirAll(filepath.Join(root, testNamespace, "c1"), 0o700))
	whole := `{"binary_name":"crun","root":"` + root + `"}`
	known := anyOf(t, &runcoptions.Options{BinaryName: "crun", Root: root})
	for name, c := range map[string]struct {
		options, runtime         string // "-": there is no such file
		store                    typeurl.Any
		wantOptions, wantRuntime string
	}{
		"all is well":            {whole, "crun", known, whole, "crun"},
		"options are empty":      {"", "crun", known, whole, "crun"},
		"options are cut":        {whole[:20], "crun", known, whole, "crun"},
		"options are gone":       {"-", "crun", known, whole, "crun"},
		"runtime is gone":        {whole, "-", known, whole, "crun"},
		"runtime is empty":       {whole, "", nil, whole, "crun"},
		"runtime is cut":         {whole, "cr", nil, whole, "crun"},
		"both are gone":          {"-", "-", known, whole, "crun"},
		"the defaults are empty": {"", "", nil, "{}", ""},
		"the defaults are cut":   {"{", "", nil, "{}", ""},
		"the defaults are gone":  {"-", "-", nil, "-", "-"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			layout := bundle.Layout{State: filepath.Join(dir, "state"), Root: filepath.Join(dir, "root")}
			d, err := layout.Create(testNamespace, "c1", bundle.CreateOptions{})
			require.NoError(t, err)
			store := &containerStore{}
			store.add("c1", plugins.RuntimeRuncV2, c.store)
			m := memManager(t)
			m.config.Containers = store
			i := newInstance(m, layout, life.Task, testNamespace, "c1", life.Dead)
			i.bundle = d
			files := map[string]string{"options.json": c.options, "runtime": c.runtime}
			for file, data := range files {
				if data != "-" {
					require.NoError(t, os.WriteFile(filepath.Join(d.Path, file), []byte(data), 0o600))
				}
			}
			require.NoError(t, i.prepareBundle(i.context(), d))
			for file, want := range map[string]string{"options.json": c.wantOptions, "runtime": c.wantRuntime} {
				data, err := os.ReadFile(filepath.Join(d.Path, file))
				if want == "-" {
					require.ErrorIs(t, err, os.ErrNotExist)
					continue
				}
				require.NoError(t, err)
				if file == "options.json" && want[0] == '{' {
					require.JSONEq(t, want, string(data))
				} else {
					require.Equal(t, want, string(data))
				}
			}
		})
	}
}
