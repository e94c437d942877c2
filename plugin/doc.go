// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package plugin makes Shimyard the task runtime of a containerd daemon: it registers three plugins under the names of
// the ones that containerd ships, and turns their config into what package manager takes.
//
// # What it owns
//
// The registrations (type, id, requirements), the shape of the config sections, their defaults, checks and migration,
// and the checked way from other plugins' instances to Go types. It holds no logic of the runtime itself and keeps no
// state.
//
// # How a daemon gets it
//
// A daemon that imports containerd's own list of builtins calls [Replace] in main; one that imports neither of
// containerd's packages core/runtime/v2 and plugins/sandbox calls [Register]. Either must be called before the daemon
// reads its config.
//
// # Invariants
//
//   - Every key of the stock sections is accepted and means the same; none of our own keys hurts stock containerd,
//     which ignores keys that it does not know.
//   - A bad value in the config stops the daemon. An unknown key does not: it is reported, with the known key nearest
//     to it.
//   - Migration adds to a section that is there and never overwrites a value in it.
package plugin
