// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package tools

import "os"

// FailpointDaemon is the custom daemon with the places in it at which a test can make it die.
func (t *Tools) FailpointDaemon() (string, error) {
	return t.goTool("containerd-failpoints", t.Module, "./containerd", "CGO_ENABLED=0",
		"GOFLAGS="+os.Getenv("GOFLAGS")+" -tags=failpoints")
}
