// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build failpoints

package failpoint

import (
	"os"
	"time"
)

// env names the failpoint at which the daemon is to die.
const env = "SHIMYARD_FAILPOINT"

// Here ends the daemon as a SIGKILL from outside would, if this is the place that the environment names.
func Here(name string) {
	if os.Getenv(env) != name {
		return
	}
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		panic(err)
	}
	time.Sleep(time.Hour) // the signal is on its way
}
