// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSpecOf(t *testing.T) {
	for want, args := range map[string][]string{
		"/b/config.json": {"runc", "--root", "/r", "--log-format", "json", "create", "--bundle", "/b", "--pid-file",
			"/p", "id"},
		"/c/config.json": {"runc", "run", "-b=/c", "id"},
		"config.json":    {"runc", "create", "id"},
		"/p.json":        {"runc", "exec", "--process", "/p.json", "--detach", "id"},
		"":               {"runc", "kill", "--all", "id", "9"},
	} {
		require.Equal(t, want, specOf(args))
	}
}

func TestRaise(t *testing.T) {
	own, err := ownScore()
	require.NoError(t, err)
	low, high := strconv.Itoa(own-1), strconv.Itoa(own+1)
	for text, want := range map[string]string{
		`{"a":1,"process":{"b":2,"oomScoreAdj":` + low + `}}`: `{"a":1,"process":{"b":2,"oomScoreAdj":` + strconv.Itoa(own) + `}}`,
		`{"oomScoreAdj":` + low + `}`:                         `{"oomScoreAdj":` + strconv.Itoa(own) + `}`,
		`{"process":{"oomScoreAdj":` + high + `}}`:            `{"process":{"oomScoreAdj":` + high + `}}`,
		`{"process":{}}`: `{"process":{}}`,
	} {
		file := filepath.Join(t.TempDir(), "config.json")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		require.NoError(t, raise(file))
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		require.JSONEq(t, want, string(data))
	}
}
