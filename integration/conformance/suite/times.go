// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pkg/errors"
)

// TimesEnv has a program of this module's own measure, by its test TestTimes.
const TimesEnv = "SHIMYARD_TIMES"

// timesFile is where such a test leaves what it has measured, beside the logs.
const timesFile = "times.json"

// WriteTimes leaves the durations of each thing that was measured for NoteTimes.
func (s *Site) WriteTimes(took map[string][]time.Duration) error {
	data, err := json.Marshal(took)
	if err != nil {
		return errors.Wrap(err, "cannot write what was measured")
	}
	return errors.Wrap(os.WriteFile(filepath.Join(s.Out, timesFile), data, 0o644), "cannot write what was measured")
}

// NoteTimes notes the median of each.
func (s *Site) NoteTimes() error {
	data, err := os.ReadFile(filepath.Join(s.Out, timesFile))
	if err != nil {
		return errors.Wrap(err, "cannot read what was measured")
	}
	var took map[string][]time.Duration
	if err := json.Unmarshal(data, &took); err != nil {
		return errors.Wrap(err, "cannot read what was measured")
	}
	for _, name := range slices.Sorted(maps.Keys(took)) {
		all := slices.Sorted(slices.Values(took[name]))
		if len(all) == 0 {
			return errors.Errorf("there are no times of %s", name)
		}
		s.Note("%s: median %v of %d", name, all[len(all)/2].Round(time.Millisecond), len(all))
	}
	return nil
}
