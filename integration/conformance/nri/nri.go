// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nri tests a daemon with plugins of NRI, containerd's interface for adjusting containers on a node.
// Its tests run in a box.
package nri

// Socket is where plugins register.
const Socket = "/var/run/nri/nri.sock"

// Config is the daemon's: the plugin is on, and none is started by the daemon itself.
const Config = `version = 3
[plugins.'io.containerd.nri.v1.nri']
  disable = false
  socket_path = '` + Socket + `'
  plugin_path = '/no/plugins'
  plugin_config_path = '/no/plugins'
`
