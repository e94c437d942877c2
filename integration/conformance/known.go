// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"embed"
	"io/fs"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/results"
)

//go:embed known
var lists embed.FS

// Known is the list of a suite; one that has no file knows of nothing.
func Known(suite string) ([]results.Entry, error) {
	data, err := lists.ReadFile("known/" + suite + ".txt")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, errors.Wrapf(err, "cannot read what is known of %s", suite)
	}
	list, err := results.ParseKnown(string(data))
	return list, errors.Wrapf(err, "known/%s.txt", suite)
}
