// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"crypto/rand"
	"strings"

	"github.com/containerd/containerd/v2/pkg/identifiers"
)

const (
	configFile     = "config.json"
	rootfsDir      = "rootfs"
	workLink       = "work"
	logFile        = "log"
	shimBinaryFile = "shim-binary-path"
	bootstrapFile  = "bootstrap.json"
	sandboxFile    = "sandbox"
	recordFile     = "shimyard.json"
	warmFile       = "warm.json"

	addressFile   = "address"
	socketDirLink = "s"
	initPidFile   = "init.pid"
	shimPidFile   = "shim.pid"
	runtimeFile   = "runtime"
	optionsFile   = "options.json"
	exitFile      = "exit.json"
)

// known are the names that mark a directory as a bundle, ours or containerd's.
var known = map[string]bool{
	configFile: true, rootfsDir: true, workLink: true, logFile: true, shimBinaryFile: true, bootstrapFile: true,
	sandboxFile: true, recordFile: true, warmFile: true,
	addressFile: true, socketDirLink: true, initPidFile: true, shimPidFile: true, runtimeFile: true, optionsFile: true,
	exitFile: true,
}

// leftoverPrefix starts the name of what we are removing. The character after the dot makes it differ from ".ID", for
// any valid id, and from the names of warm shims ("._…").
const leftoverPrefix = ".-rm."

func newLeftoverName(id string) string {
	return leftoverPrefix + id + "." + rand.Text()
}

func isHidden(name string) bool {
	return strings.HasPrefix(name, ".")
}

// isLeftover reports whether a removal that was cut short, ours or containerd's own, left something of this name.
func isLeftover(name string) bool {
	return strings.HasPrefix(name, leftoverPrefix) || isStockLeftover(name)
}

func isStockLeftover(name string) bool {
	id, hidden := strings.CutPrefix(name, ".")
	return hidden && identifiers.Validate(id) == nil
}
