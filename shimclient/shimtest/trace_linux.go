// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"
)

// appendTrace adds one line by one write, so that lines of several processes do not mix.
func appendTrace(home string, e Entry) {
	e.Time, e.Pid = time.Now(), os.Getpid()
	line, err := json.Marshal(e)
	if err != nil {
		return
	}
	f, err := os.OpenFile(filepath.Join(home, traceFile), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.Write(append(line, '\n'))
}
