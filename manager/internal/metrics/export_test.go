// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

// Values are the closed lists, for the test that holds them against the packages that say them.
var Values = values
