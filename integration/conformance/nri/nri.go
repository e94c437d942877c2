// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nri tests a daemon with plugins of NRI, containerd's interface for those who adjust containers on a node. Its tests run in a box.
package nri

import (
	"fmt"

	"github.com/shimyard/shimyard/integration/conformance/suite"
)

// Socket is where plugins register.
const Socket = "/var/run/nri/nri.sock"

// Config is the daemon's: the plugin is on, and none is started by the daemon itself.
func Config() string {
	return fmt.Sprintf(template, suite.RestrictOOM())
}

const template = `version = 3
[plugins.'io.containerd.nri.v1.nri']
  disable = false
  socket_path = '` + Socket + `'
  plugin_path = '/no/plugins'
  plugin_config_path = '/no/plugins'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = %t
`
