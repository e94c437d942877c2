// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// partEnv tells a test binary that it is a part of a run.
const partEnv = "SHIMYARD_TEST_PART"

// undivided are the flags that keep a run in one process where they are set: they choose among the tests, or what they
// ask for is of one process.
var undivided = []string{
	"run", "skip", "list", "bench", "fuzz", "fuzzworker", "shuffle", "coverprofile", "gocoverdir", "cpuprofile",
	"memprofile", "blockprofile", "mutexprofile", "trace",
}

// MainInParts is Main for a package whose tests wait more than they work and use what there is once for each process,
// so that they cannot run in parallel in one: all its tests are dealt out to n processes at a time. A run of some of
// them, or one that is repeated, stays in one process.
func MainInParts(m *testing.M, n int) {
	Dispatch()
	flag.Parse()
	if os.Getenv(partEnv) != "" || isNarrowed() {
		Main(m)
	}
	names, err := testNames()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot list the tests:", err)
		os.Exit(1)
	}
	os.Exit(runParts(names, n))
}

// isNarrowed tells whether one of the flags is set that keep a run in one process.
func isNarrowed() bool {
	for _, name := range undivided {
		if f := flag.Lookup("test." + name); f != nil && f.Value.String() != f.DefValue {
			return true
		}
	}
	count := flag.Lookup("test.count")
	return count != nil && count.Value.String() != "1"
}

// testNames are all tests that a run without flags would run.
func testNames() ([]string, error) {
	cmd := exec.Command(os.Args[0], "-test.list=^(Test|Fuzz|Example)")
	cmd.Env = append(os.Environ(), partEnv+"=list")
	out, err := cmd.Output()
	return strings.Fields(string(out)), err
}

// runParts deals the tests out, each part as it comes to it, and returns the exit code of the whole.
func runParts(names []string, n int) (code int) {
	dir, err := os.MkdirTemp("", "parts")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	var wg sync.WaitGroup
	var mu sync.Mutex // orders what the parts have written, and guards code
	for part := range n {
		var mine []string
		for k := part; k < len(names); k += n {
			mine = append(mine, names[k])
		}
		if len(mine) == 0 {
			continue
		}
		wg.Go(func() {
			out, err := runPart(mine, partLog(dir, part))
			mu.Lock()
			defer mu.Unlock()
			_, _ = os.Stdout.Write(out)
			if err != nil {
				fmt.Printf("part %d of the tests: %v\n", part, err)
				code = 1
			}
		})
	}
	wg.Wait()
	if err := joinLogs(testLog(), dir, n); err != nil {
		fmt.Fprintln(os.Stderr, "cannot write the test log:", err)
		return 1
	}
	return code
}

// runPart runs some of the tests in a process of their own, with the flags of this one.
func runPart(names []string, log string) ([]byte, error) {
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool {
		return strings.HasPrefix(arg, "-test.testlogfile=")
	})
	if testLog() != "" {
		args = append(args, "-test.testlogfile="+log)
	}
	cmd := exec.Command(os.Args[0], append(args, "-test.run=^("+strings.Join(names, "|")+")$")...)
	cmd.Env = append(os.Environ(), partEnv+"=run")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.Bytes(), err
}

// testLog is where the go command wants to read which files and variables the tests have looked at: their result is
// cached for as long as those stay the same. "" where it does not.
func testLog() string {
	if f := flag.Lookup("test.testlogfile"); f != nil {
		return f.Value.String()
	}
	return ""
}

func partLog(dir string, part int) string { return filepath.Join(dir, fmt.Sprint("log", part)) }

// logHead is the first line of a test log.
const logHead = "# test log\n"

// joinLogs makes the test log of the whole; "" is the path of none.
func joinLogs(path, dir string, n int) error {
	if path == "" {
		return nil
	}
	all := []byte(logHead)
	for part := range n {
		b, err := os.ReadFile(partLog(dir, part))
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		all = append(all, bytes.TrimPrefix(b, []byte(logHead))...)
	}
	return os.WriteFile(path, all, 0o666)
}
