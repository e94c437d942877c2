// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseMachine(t *testing.T) {
	const info = "MemTotal:       24683656 kB\nMemFree:        14081296 kB\nMemAvailable:   22642776 kB\nHugePages_Total:       0\n"
	const pressure = "some avg10=12.50 avg60=0.02 avg300=0.00 total=40457\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=1525\n"
	require.Equal(t, Machine{24683656 << 10, 22642776 << 10, 12.5}, parseMachine([]byte(info), []byte(pressure)))
	for _, damaged := range []string{
		"", "MemTotal: kB", "MemTotal: -1 kB", "MemTotal: 99999999999999999999 kB", "some avg10=much",
	} {
		require.Zero(t, parseMachine([]byte(damaged), []byte(damaged)), damaged)
	}
	require.NotZero(t, readMachine().Total)
	require.NotZero(t, readMachine().Available)
}
