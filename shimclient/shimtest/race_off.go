// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package shimtest

const raceDetector = false
