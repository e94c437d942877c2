// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"path/filepath"
	"time"
)

// damageable are the files of a bundle that a container, and what was told of it, must outlast. Left out are those
// whose loss loses a fact that is nowhere else: which exits were told (shimyard.json), how a container exited whose
// shim is dead (exit.json), the pid of one whose Create was not answered (init.pid), and what a created one is to run
// (config.json).
var damageable = []string{
	"bootstrap.json", "bootstrap.json", "shim-binary-path", "options.json", "runtime", "work", "log", "address",
	"sandbox",
}

// damageFiles kills the daemon and damages a file in some bundles before it starts again.
func (c *chaos) damageFiles(f step) {
	c.note(nil, "daemon is killed")
	c.endDaemon(ends["killed"])
	for k := range 1 + f.arg%4 {
		s := c.slots[(f.slot+k*5)%len(c.slots)]
		file := damageable[(f.arg/4+k)%len(damageable)]
		path := filepath.Join(c.Bundle(testNS, s.id), file)
		info, err := os.Lstat(path)
		if err != nil {
			continue
		}
		how := "removed"
		switch n := f.arg / 64 % 3; {
		case n == 0 || !info.Mode().IsRegular():
			err = os.Remove(path)
		default:
			how = []string{"", "emptied", "cut"}[n]
			err = os.Truncate(path, info.Size()/2*int64(n-1))
		}
		c.note(s, "%s is %s (%v)", file, how, err)
	}
	time.Sleep(time.Duration(f.arg/256%4) * 100 * time.Millisecond)
	c.Run()
	c.open()
}
