// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/pkg/errors"
)

// Generation is what a shim makes of the bytes on the stdin of `start`.
type Generation string

const (
	// Bootstrap is a shim built on containerd's pkg/shim from 2.4 on: it refuses anything but BootstrapParams of
	// its own id and namespace, before it does anything. The zero value means the same.
	Bootstrap Generation = "bootstrap"
	// Legacy is a shim of containerd 1.6: it reads an Any and fails on BootstrapParams.
	Legacy Generation = "legacy"
	// Lenient is a shim that never looks at stdin.
	Lenient Generation = "lenient"
	// Dropping is a runc shim of containerd 1.7 to 2.2: it starts with either, and BootstrapParams silently lose
	// their options.
	Dropping Generation = "dropping"
)

// Format is how the reply of `start` is written on stdout.
type Format string

// The formats. Without one, Bootstrap answers Protobuf, Dropping answers JSON, and the others answer Address.
const (
	Protobuf Format = "protobuf"
	JSON     Format = "json"
	Address  Format = "address" // the address alone: version 2, ttrpc
	Garbage  Format = "garbage" // bytes that are no reply
	Empty    Format = "empty"
	Huge     Format = "huge" // 16 MiB without an end
	Raw      Format = "raw"  // Reply.Raw as it is
)

// SocketForm is the kind of socket that a daemon listens on.
type SocketForm string

// The forms. Without one it is Unix.
const (
	Unix     SocketForm = "unix"     // a file, told as unix://PATH
	Bare     SocketForm = "bare"     // a file, told as PATH
	Abstract SocketForm = "abstract" // an abstract socket, told as its name without the NUL
	HVsock   SocketForm = "hvsock"   // a file that wants a CONNECT line first, told as hvsock://PATH:1024
)

// Stage is a point in the life of a `start` helper.
type Stage string

const (
	// AtEntry is before stdin is read.
	AtEntry Stage = "entry"
	// BeforeFork is after stdin was read and before the daemon exists.
	BeforeFork Stage = "before-fork"
	// AfterFork is when the daemon exists and listens, and nothing was answered.
	AfterFork Stage = "after-fork"
	// AfterReply is when the reply is on stdout, and the helper has not ended.
	AfterReply Stage = "after-reply"
)

// Reply says how `start` answers. The zero value is a proper answer of the scenario's generation.
type Reply struct {
	Format   Format   `json:"format,omitempty"`
	Raw      []byte   `json:"raw,omitempty"`
	Version  int32    `json:"version,omitempty"`  // 0: 3, or 2 for Format Address
	Protocol string   `json:"protocol,omitempty"` // "": the transport that is really served
	Address  string   `json:"address,omitempty"`  // "": the real one
	Omit     []string `json:"omit,omitempty"`     // of "version", "protocol", "address"

	Metadata map[string]string `json:"metadata,omitempty"`
	// MountTypes and MountTransforms, if either is set, are told as a MountCapabilities extension.
	MountTypes      []string `json:"mount_types,omitempty"`
	MountTransforms []string `json:"mount_transforms,omitempty"`
}

// StartFaults says what goes wrong in `start`.
type StartFaults struct {
	Times  int    `json:"times,omitempty"`   // the hang, failure or death befalls only the first so many starts; 0: all
	Only   string `json:"only,omitempty"`    // only starts with this stdin ("bootstrap", "legacy", "none")
	HangAt Stage  `json:"hang_at,omitempty"` // until the scenario no longer says so
	FailAt Stage  `json:"fail_at,omitempty"` // exits 1 with FailText on stderr
	DieAt  Stage  `json:"die_at,omitempty"`  // SIGKILLs itself

	FailText string `json:"fail_text,omitempty"`
	// LeaveDaemon: a helper that fails once the daemon is forked does not end it. One that dies never does.
	LeaveDaemon bool `json:"leave_daemon,omitempty"`
	// LeakOnRefusal: stdin is judged only after the daemon was forked, and the daemon stays, as rust-extensions'
	// async shim did up to 0.11.
	LeakOnRefusal bool `json:"leak_on_refusal,omitempty"`
	// Stderr is written at entry, whatever comes next.
	Stderr string `json:"stderr,omitempty"`
	// InheritStdout: the daemon keeps the helper's stdout and stderr open.
	InheritStdout bool          `json:"inherit_stdout,omitempty"`
	Delay         time.Duration `json:"delay,omitempty"` // before the fork
}

// DeleteFaults says what goes wrong in `delete`.
type DeleteFaults struct {
	Fail     int    `json:"fail,omitempty"` // the first so many exit 1 with FailText, having done nothing; <0: all
	FailText string `json:"fail_text,omitempty"`
	Hang     bool   `json:"hang,omitempty"`    // until the scenario no longer says so, before anything is done
	Stderr   string `json:"stderr,omitempty"`  // noise
	Garbage  bool   `json:"garbage,omitempty"` // prints bytes that are no reply
	Mute     bool   `json:"mute,omitempty"`    // prints nothing
}

// InfoAnswer says how `-info` answers.
type InfoAnswer struct {
	IDMap      *bool `json:"idmap,omitempty"` // linux.mountExtensions.idmap.enabled; nil: not told
	NoFeatures bool  `json:"no_features,omitempty"`
	// ForeignFeatures: the features are a message of another type than OCI's.
	ForeignFeatures bool              `json:"foreign_features,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"`
	Fail            string            `json:"fail,omitempty"` // exits 1 with this on stderr
	Hang            bool              `json:"hang,omitempty"` // until the scenario no longer says so
}

// Rule changes what becomes of an RPC. The first rule that matches and is not used up applies; those after it do not
// count the call. Rules are read anew at each RPC.
type Rule struct {
	Name    string `json:"name,omitempty"` // counts belong to it; without a name, equal rules share them
	Method  string `json:"method"`         // "State", "CreateSandbox"; "*": every method
	ID      string `json:"id,omitempty"`   // only for this container or sandbox
	ExecID  string `json:"exec_id,omitempty"`
	Version int    `json:"version,omitempty"` // only for this version of the Task service
	Skip    int    `json:"skip,omitempty"`    // lets the first so many matching calls through
	Times   int    `json:"times,omitempty"`   // applies so many times; 0: for ever

	// After: what follows happens when the method has done its work, and concerns its answer only.
	After bool          `json:"after,omitempty"`
	Delay time.Duration `json:"delay,omitempty"`
	// Hang: nothing happens until the rule is gone from the scenario; then the call goes on.
	Hang bool `json:"hang,omitempty"`
	// Code (a gRPC code by name, as "NotFound" or "Unknown") and Message are answered as an error.
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
	// Unsupported: the error with which Rust's ttrpc answers a method that the service does not implement.
	Unsupported bool `json:"unsupported,omitempty"`
	// Die: the daemon SIGKILLs itself.
	Die bool `json:"die,omitempty"`
	// Drop: the daemon closes all its connections, and goes on listening.
	Drop bool `json:"drop,omitempty"`
	// Unlisten: the daemon stops listening and leaves the socket's file behind; its connections stay.
	Unlisten bool `json:"unlisten,omitempty"`
	// Swallow: the method does nothing and answers success.
	Swallow bool `json:"swallow,omitempty"`
	// Answer overrides fields of the answer, by their protobuf names.
	Answer map[string]any `json:"answer,omitempty"`
}

// EventRule changes what becomes of an event. The first that matches applies.
type EventRule struct {
	Topic     string        `json:"topic"` // "*": every topic
	ID        string        `json:"id,omitempty"`
	Drop      bool          `json:"drop,omitempty"`
	Delay     time.Duration `json:"delay,omitempty"` // delays what comes after it as well: order is kept
	Duplicate bool          `json:"duplicate,omitempty"`
}

// Scenario is the script of a fake shim. The zero value is a well-behaved ttrpc shim of the newest generation.
// It is read at each exec and, for Rules, Events and the hangs, all the time. What counts (Times, Skip, Fail) counts
// anew once Update has taken it out or changed it.
type Scenario struct {
	Generation Generation `json:"generation,omitempty"`
	Transport  string     `json:"transport,omitempty"` // "ttrpc" (also "") or "grpc"
	Versions   []int      `json:"versions,omitempty"`  // of the Task service that are served; nil: that of the reply
	Socket     SocketForm `json:"socket,omitempty"`
	// SocketDir is where sockets go if BootstrapParams do not say; "": the directory s of the install.
	SocketDir string `json:"socket_dir,omitempty"`
	// NoGroup: a start whose socket is served already fails, instead of answering with that socket's address.
	NoGroup bool `json:"no_group,omitempty"`
	// NoAddressFile: generations other than Bootstrap write no `address` file.
	NoAddressFile bool `json:"no_address_file,omitempty"`
	// NoExitFile: no exit.json, which only Bootstrap writes anyway.
	NoExitFile bool         `json:"no_exit_file,omitempty"`
	Reply      Reply        `json:"reply"`
	Start      StartFaults  `json:"start"`
	Delete     DeleteFaults `json:"delete"`
	Info       InfoAnswer   `json:"info"`

	// Init is what containers run whose config.json has no process.args; nil: ["sleep"], which is for ever.
	Init []string `json:"init,omitempty"`
	// Log is written to the bundle's log fifo when the daemon comes up, each as one line; LogFlood so many bytes after.
	Log      []string `json:"log,omitempty"`
	LogFlood int      `json:"log_flood,omitempty"`
	// ShimPid is what Connect says instead of the truth.
	ShimPid uint32 `json:"shim_pid,omitempty"`
	// Linger: a daemon that has said yes to Shutdown goes on until the scenario no longer says so.
	Linger bool `json:"linger,omitempty"`
	// EarlyDelete: the Delete of a task that was never started does not wait for the end of its init, as runc's shim
	// does not: its delete event, with status 0, comes before the exit's.
	EarlyDelete bool `json:"early_delete,omitempty"`
	// InheritEnv: containers get the whole environment of the shim, as those of runwasi's shims do.
	InheritEnv bool `json:"inherit_env,omitempty"`
	// Nameless: the daemon does not have its id in its environment, though the binary says that it has.
	Nameless bool `json:"nameless,omitempty"`
	// Program is what containers are, in the place of guests: it begins at Create, and must end by itself if its shim is
	// killed. A guest takes four megabytes, a small program next to nothing.
	Program []string `json:"program,omitempty"`
	// Sandbox: the Sandbox service is served too.
	Sandbox bool `json:"sandbox,omitempty"`

	Rules  []Rule      `json:"rules,omitempty"`
	Events []EventRule `json:"events,omitempty"`
	// TraceEnv names further environment variables to record; those of the contract always are.
	TraceEnv []string `json:"trace_env,omitempty"`
}

// counter names the file that counts how often the rule has matched.
func (r *Rule) counter() string {
	if r.Name != "" {
		return "rule-" + r.Name
	}
	data, _ := json.Marshal(r)
	return fmt.Sprintf("rule-%x", sha256.Sum256(data))
}

const (
	startCounter  = "start"
	deleteCounter = "delete"
)

// staleCounters names what begins to count anew when a scenario takes the place of another: what is not the same in
// both.
func staleCounters(was, is *Scenario) []string {
	var stale []string
	if !reflect.DeepEqual(was.Start, is.Start) {
		stale = append(stale, startCounter)
	}
	if was.Delete != is.Delete {
		stale = append(stale, deleteCounter)
	}
	for _, r := range was.Rules {
		name := r.counter()
		if !slices.ContainsFunc(is.Rules, func(o Rule) bool { return o.counter() == name }) {
			stale = append(stale, name)
		}
	}
	return stale
}

const scenarioFile = "scenario.json"

func loadScenario(home string) (*Scenario, error) {
	data, err := os.ReadFile(filepath.Join(home, scenarioFile))
	if err != nil {
		return nil, errors.Wrap(err, "reading the scenario")
	}
	s := &Scenario{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, errors.Wrap(err, "decoding the scenario")
	}
	return s, nil
}

// storeScenario replaces the scenario in one step, so that no reader sees half of it.
func storeScenario(home string, s *Scenario) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return errors.Wrap(err, "encoding the scenario")
	}
	path := filepath.Join(home, scenarioFile)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return errors.Wrap(err, "writing the scenario")
	}
	return errors.Wrap(os.Rename(path+".new", path), "replacing the scenario")
}
