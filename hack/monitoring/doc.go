// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package monitoring has the alerts and the dashboard for Shimyard's metrics. They are checked by Prometheus's own
// parsers and against the metrics that the code has; the module is one of its own so that no other inherits
// Prometheus.
package monitoring
