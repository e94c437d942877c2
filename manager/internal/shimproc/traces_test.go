// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/shimclient"
)

// TestIsOfShimsAge: a container that began in the tick in which its shim answered is not taken for the shim, whose death
// would never be noticed; nor is the shim taken for a container.
func TestIsOfShimsAge(t *testing.T) {
	for name, c := range map[string]struct {
		start, answered uint64
		told, want      bool
	}{
		"before the answer":                         {start: 9, answered: 10, want: true},
		"before the answer, with a container's pid": {start: 9, answered: 10, told: true, want: true},
		"in the tick of the answer":                 {start: 10, answered: 10, want: true},
		"a container in the tick of the answer":     {start: 10, answered: 10, told: true},
		"after the answer":                          {start: 11, answered: 10},
		"the answer is not known":                   {start: 11, want: true},
		"a container, the answer is not known":      {start: 11, told: true},
	} {
		t.Run(name, func(t *testing.T) {
			runs := func(shimclient.ProcessID) bool { return c.told }
			require.Equal(t, c.want, IsOfShimsAge(shimclient.ProcessID{Pid: 1, StartTime: c.start}, c.answered, runs))
		})
	}
}
