// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package progress is how far the create and the clean-up of an instance, and a restore of all, have come: what one
// goroutine notes for the one that goes on.
//
// Each of its types has a lock of its own, which may be taken under any other and under which nothing is done. That is
// right since nothing that is noted here decides about a state. It knows no instance and does nothing by itself.
package progress
