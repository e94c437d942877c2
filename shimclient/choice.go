// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// Choice reads a value of a config that is one of some words; "" is the first of them. Another is an InvalidArgument
// error that says what the value is of and which there are.
func Choice[T ~string](what, value string, of ...T) (T, error) {
	if value == "" {
		return of[0], nil
	}
	words := make([]string, len(of))
	for i, word := range of {
		if string(word) == value {
			return word, nil
		}
		words[i] = fmt.Sprintf("%q", word)
	}
	last := len(words) - 1
	return "", errors.Wrapf(errdefs.ErrInvalidArgument, "%s %q: use %s or %s", what, value,
		strings.Join(words[:last], ", "), words[last])
}
