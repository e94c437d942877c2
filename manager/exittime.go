// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"math"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// hasTime tells whether a shim's timestamp of an exit can be one. Shims leave it out, or write the zero time (year 1).
// Clients convert what they get to Unix nanoseconds, which end in the year 2262.
func hasTime(t *timestamppb.Timestamp) bool {
	return t != nil && t.IsValid() && t.Seconds > 0 && t.Seconds < math.MaxInt64/int64(time.Second)
}

// timeOf reads a shim's timestamp of an exit; the zero time when it gives none. Who records the exit puts the time of
// first sight there.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if !hasTime(t) {
		return time.Time{}
	}
	return t.AsTime()
}

// orFirst is the time of an exit: as the shim gave it, else when the process was first seen stopped, else now.
func orFirst(at, seen time.Time) time.Time {
	switch {
	case !at.IsZero():
		return at
	case !seen.IsZero():
		return seen
	}
	return time.Now().UTC()
}
