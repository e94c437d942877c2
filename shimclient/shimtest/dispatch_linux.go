// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// Dispatch makes this process a shim, or a container's process, if it was executed as one, and then does not return.
// It must come first in the TestMain of every test binary that uses Install.
func Dispatch() {
	dispatched.Store(true)
	base := filepath.Base(os.Args[0])
	switch {
	case base == guestName:
		os.Exit(runGuest(os.Args[1:]))
	case strings.HasPrefix(base, shimPrefix):
		os.Exit(runShim())
	}
	if race := os.Getenv("GORACE"); !strings.Contains(race, "atexit_sleep_ms") {
		// Otherwise a binary built with -race sleeps for a second before each exit of a shim.
		_ = os.Setenv("GORACE", strings.TrimSpace(race+" atexit_sleep_ms=0"))
	}
}

// execution is one exec of the shim's binary.
type execution struct {
	home     string
	scenario *Scenario
	args     []string
	action   string
	id       string
	ns       string
	address  string
	bundle   string
	debug    bool
}

func runShim() int {
	x, err := newExecution()
	if err == nil {
		err = x.run()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "io.containerd.fake.v1: %s", err)
		return 1
	}
	return 0
}

func newExecution() (*execution, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, errors.Wrap(err, "finding the shim's own binary")
	}
	x := &execution{home: filepath.Dir(exe), args: os.Args}
	if x.scenario, err = loadScenario(x.home); err != nil {
		return nil, err
	}
	var info, version bool
	flags := flag.NewFlagSet(os.Args[0], flag.ContinueOnError)
	flags.StringVar(&x.ns, "namespace", "", "")
	flags.StringVar(&x.id, "id", "", "")
	flags.StringVar(&x.address, "address", "", "")
	flags.StringVar(&x.bundle, "bundle", "", "")
	flags.String("publish-binary", "", "")
	flags.String("socket", "", "")
	flags.BoolVar(&x.debug, "debug", false, "")
	flags.BoolVar(&info, "info", false, "")
	flags.BoolVar(&version, "v", false, "")
	flags.BoolVar(&version, "version", false, "")
	if err := flags.Parse(os.Args[1:]); err != nil {
		return nil, err
	}
	switch {
	case version:
		x.action = "version"
	case info:
		x.action = "info"
	case flags.Arg(0) == "":
		x.action = "daemon"
	default:
		x.action = flags.Arg(0)
	}
	return x, nil
}

func (x *execution) run() error {
	if x.action != "version" && x.action != "info" && x.ns == "" {
		return errors.New("shim namespace cannot be empty")
	}
	switch x.action {
	case "version":
		x.trace(Entry{})
		fmt.Printf("%s:\n  Version:  fake\n", filepath.Base(x.args[0]))
		return nil
	case "info":
		return x.info()
	case "start":
		return x.start()
	case "delete":
		return x.delete()
	case "daemon":
		return x.serve()
	}
	return errors.Errorf("unknown action %q", x.action)
}

// contractEnv are the variables that the contract between daemon and shim knows.
var contractEnv = []string{
	"TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE", "MAX_SHIM_VERSION", "GOMAXPROCS", "SCHED_CORE", "SHIMYARD_LAUNCH",
}

// trace records this exec, with what e has to add.
func (x *execution) trace(e Entry) {
	e.Kind, e.Action, e.Argv, e.ID = KindExec, x.action, x.args, x.id
	e.Cwd, _ = os.Getwd()
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if slices.Contains(contractEnv, name) || slices.Contains(x.scenario.TraceEnv, name) {
			e.Env = append(e.Env, kv)
		}
	}
	appendTrace(x.home, e)
}

// hangWhile blocks as long as the scenario says so.
func (x *execution) hangWhile(says func(*Scenario) bool) {
	for {
		s, err := loadScenario(x.home)
		if err != nil || ownerGone(x.home) {
			os.Exit(1)
		}
		if !says(s) {
			return
		}
		time.Sleep(pollInterval)
	}
}

// pollInterval is how often a process of a fake looks whether its script has changed.
const pollInterval = 10 * time.Millisecond

// count adds one to a counter that all processes of an install share, and returns its new value.
func count(home, name string) int {
	name = strings.ReplaceAll(name, "/", "_")
	f, err := os.OpenFile(filepath.Join(home, "counters", name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return 0
	}
	buf := make([]byte, 16)
	n, _ := f.ReadAt(buf, 0)
	value, _ := strconv.Atoi(string(buf[:n]))
	value++
	_, _ = f.WriteAt([]byte(strconv.Itoa(value)), 0)
	return value
}

func dieHere() {
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}
