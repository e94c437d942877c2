// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pkg/errors"
)

// section is what our registrations carry as Config. It is a map, not a struct, because the daemon decodes a config
// file into it before an InitFn runs and drops what a struct has no field for; a map keeps every key, so that the
// InitFn can say what was probably meant by an unknown one.
type section map[string]any

// newSection is a section that holds the defaults, which must be a struct that TOML can represent.
func newSection(defaults any) *section {
	s := section{}
	b, err := toml.Marshal(defaults)
	if err == nil {
		err = toml.Unmarshal(b, &s)
	}
	if err != nil {
		panic(errors.Wrapf(err, "cannot make a config section of %T", defaults))
	}
	return &s
}

// decode fills into, a pointer to a struct, and returns the keys that it has no place for, each as its path from the
// section down. A value of the wrong type is an error that names its key.
func (s section) decode(into any, known []string) (unknown [][]string, err error) {
	b, err := toml.Marshal(map[string]any(s.foldKeys(known)))
	if err != nil {
		return nil, err
	}
	err = toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(into)
	var missing *toml.StrictMissingError
	if errors.As(err, &missing) {
		for _, e := range missing.Errors {
			unknown = append(unknown, slices.Clone(e.Key()))
		}
		err = toml.Unmarshal(b, into)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		err = errors.Errorf("key %s: %s", strings.Join(bad.Key(), "."), strings.TrimPrefix(bad.Error(), "toml: "))
	}
	return unknown, err
}

// foldKeys gives keys that differ from a known one only in case its spelling: TOML structs accept either, and beside
// the default under the known spelling the user's value would count or not depending on the order.
func (s section) foldKeys(known []string) section {
	out := maps.Clone(s)
	for key, value := range s {
		for _, name := range known {
			if key != name && strings.EqualFold(key, name) {
				delete(out, key)
				out[name] = value
			}
		}
	}
	return out
}
