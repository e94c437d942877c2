// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package inspect holds what a client asks a daemon about its shims, and what it gets for an answer. The question is
// the options of containerd's introspection call PluginInfo for the plugin io.containerd.runtime.v2.task, and the
// answer is its extra; both travel as JSON under the type URLs that this package registers with typeurl.
//
// None of the questions sends anything to a shim but Dump, which sends a signal. A daemon whose task runtime is
// containerd's own does not know the types and answers NotFound.
package inspect

import (
	"time"

	"github.com/containerd/typeurl/v2"
)

// Version of the answers. It changes when a field changes its meaning or goes, not when one is added.
const Version = 1

func init() {
	for name, t := range map[string]any{
		"ListRequest": &ListRequest{}, "ListResponse": &ListResponse{},
		"InspectRequest": &InspectRequest{}, "InspectResponse": &InspectResponse{},
		"DumpRequest": &DumpRequest{}, "DumpResponse": &DumpResponse{},
		"LogsRequest": &LogsRequest{}, "LogsResponse": &LogsResponse{},
	} {
		typeurl.Register(t, "shimyard", "inspect", "v1", name)
	}
}

// ListRequest asks for all instances, those included that are being created or cleaned up.
type ListRequest struct {
	// Namespace limits the answer to one; "" is all.
	Namespace string `json:"namespace,omitempty"`
	// Processes asks for what /proc says of each verified shim and init, too.
	Processes bool `json:"processes,omitempty"`
}

// ListResponse is sorted by namespace and id.
type ListResponse struct {
	Version   int        `json:"version"`
	Instances []Instance `json:"instances"`
}

// Instance is a task or a sandbox as the daemon sees it.
type Instance struct {
	Namespace string `json:"namespace"`
	ID        string `json:"id"`
	// Kind is "task" or "sandbox".
	Kind string `json:"kind"`
	// State is one of the State constants, Since when it began.
	State string    `json:"state"`
	Since time.Time `json:"since"`
	// Created is when the create of the instance began; zero where that is not on record.
	Created time.Time `json:"created,omitzero"`
	// Runtime is the name or the path that the create named.
	Runtime string `json:"runtime,omitempty"`
	// Source is how the instance came by its shim: "start", "warm" or "join".
	Source string `json:"source,omitempty"`
	// API is the version of the Task API that is spoken; 0 before the shim has answered.
	API     int    `json:"api,omitempty"`
	Address string `json:"address,omitempty"`
	// Shim is the shim's process, nil where its pid is not verified. Init is the container's first process, nil where
	// it is not known to be a process of this machine.
	Shim *Process `json:"shim,omitempty"`
	Init *Process `json:"init,omitempty"`
	// Tasks is how many instances the shim process serves.
	Tasks int `json:"tasks,omitempty"`
	// LastError is the last thing that went wrong with it, and when: what a cleanup could not remove, or a connect that
	// failed.
	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
}

// The states of an instance in this API.
const (
	// StateLaunching: its create is under way.
	StateLaunching = "launching"
	// StateRestoring: found on disk when the daemon started, its shim has not answered since.
	StateRestoring = "restoring"
	// StateRunning: in the hands of a shim that answers, whether its process still runs or has exited.
	StateRunning = "running"
	// StateUnresponsive: its shim leaves calls unanswered.
	StateUnresponsive = "unresponsive"
	// StateReconnecting: there is no connection to its shim.
	StateReconnecting = "reconnecting"
	// StateDeleting: a delete is under way.
	StateDeleting = "deleting"
	// StateCleaning: there is no task any more, what it left is being removed.
	StateCleaning = "cleaning"
	// StateDead: its shim is proven dead, the exit is being told.
	StateDead = "dead"
)

// States are all states, in the order of an instance's life.
func States() []string {
	return []string{
		StateLaunching, StateRestoring, StateRunning, StateUnresponsive, StateReconnecting, StateDeleting,
		StateCleaning, StateDead,
	}
}

// Process is what the kernel says of a process. All but the pid are there only where they were asked for and could be
// read.
type Process struct {
	Pid int `json:"pid"`
	// State as in ps: "R", "S", "D", "T", "Z".
	State string `json:"state,omitempty"`
	// RSS in bytes, CPU time used since its start in nanoseconds.
	RSS uint64 `json:"rss,omitempty"`
	CPU uint64 `json:"cpu,omitempty"`
	// Deleted: the file that it runs was removed or replaced.
	Deleted bool `json:"deleted,omitempty"`
}

// InspectRequest asks for all that is known of one instance. NotFound if there is none.
type InspectRequest struct {
	Namespace string `json:"namespace"`
	ID        string `json:"id"`
}

// InspectResponse is everything known of one instance.
type InspectResponse struct {
	Version  int      `json:"version"`
	Instance Instance `json:"instance"`
	Bundle   string   `json:"bundle"`
	// Binary is the path of the shim's binary, as it was resolved at the create.
	Binary string `json:"binary,omitempty"`
	// Connection is the state of the way to the shim: "connecting", "connected", "unresponsive" or "ended", and since
	// when.
	Connection      string    `json:"connection,omitempty"`
	ConnectionSince time.Time `json:"connection_since,omitzero"`
	// Members are the instances that the shim serves, as NAMESPACE/ID.
	Members []string `json:"members,omitempty"`
	// Warm is the id under which a warm shim was started.
	Warm string `json:"warm,omitempty"`
	// Status as last known, as the Task API names it.
	Status string `json:"status,omitempty"`
	// Exit of the init process; nil until it is known.
	Exit  *Exit  `json:"exit,omitempty"`
	Execs []Exec `json:"execs,omitempty"`
}

// Exit of a process.
type Exit struct {
	Pid    uint32    `json:"pid,omitempty"`
	Status uint32    `json:"status"`
	At     time.Time `json:"at,omitzero"`
	// Told: its event was published, by the shim or by the daemon.
	Told bool `json:"told"`
}

// Exec is a further process of a task.
type Exec struct {
	ID   string `json:"id"`
	Pid  uint32 `json:"pid,omitempty"`
	Exit *Exit  `json:"exit,omitempty"`
}

// DumpRequest makes a shim write the stacks of its goroutines, by SIGUSR1, and asks for them. FailedPrecondition where
// the shim does not catch the signal, which would end it, or where its pid is not verified.
type DumpRequest struct {
	Namespace string `json:"namespace"`
	ID        string `json:"id"`
}

// DumpResponse is what the shim wrote.
type DumpResponse struct {
	Version int    `json:"version"`
	Pid     int    `json:"pid"`
	Text    string `json:"text"`
}

// LogsRequest asks for lines that the shim of an instance has logged: the last Tail ones (0: all that are kept), and of
// those the ones after After.
type LogsRequest struct {
	Namespace string `json:"namespace"`
	ID        string `json:"id"`
	Tail      int    `json:"tail,omitempty"`
	After     uint64 `json:"after,omitempty"`
}

// LogsResponse has the lines in the order in which they came. A shim that is shared mixes the lines of those it serves.
type LogsResponse struct {
	Version int       `json:"version"`
	Lines   []LogLine `json:"lines"`
	// Last is the number of the last line that there is, for After of the next request.
	Last uint64 `json:"last"`
}

// LogLine is one line of a shim.
type LogLine struct {
	Number uint64    `json:"number"`
	At     time.Time `json:"at"`
	Text   string    `json:"text"`
}
