// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shimyard/shimyard/manager/inspect"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/manager/internal/warm"
)

// TestLists: the states and reasons in the metrics are those of the packages that have them.
func TestLists(t *testing.T) {
	require.ElementsMatch(t, inspect.States(), metrics.Values["instances"]["state"])
	var processes, shims []string
	for st := shimproc.Connecting; st <= shimproc.Ended; st++ {
		processes = append(processes, st.String())
	}
	require.Equal(t, processes, metrics.Values["processes"]["state"])
	for st := warm.Entered; st <= warm.Ending; st++ {
		shims = append(shims, st.String())
	}
	require.Equal(t, shims, metrics.Values["warm_shims"]["state"])
	require.ElementsMatch(t, []string{warm.WhyIdle, warm.WhyWorn, warm.WhyDistrusted, warm.WhyCeiling, warm.WhyMemory,
		warm.WhyDied, warm.WhyStop}, metrics.Values["warm_ended_total"]["reason"])
}
