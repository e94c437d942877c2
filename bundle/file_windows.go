// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

const openFlags = 0
