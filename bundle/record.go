// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"encoding/json"
	"os"
	"time"

	"github.com/pkg/errors"
)

// RecordVersion is the version of Record that this code writes and the newest that it reads. It changes when an older
// reader would draw a wrong conclusion from a record, not when a field is added that it may ignore.
const RecordVersion = 1

// Record is what we know of an instance beyond what containerd's own runtime writes down: enough to list it, to answer
// for it and to tell whether its processes live, before and without asking its shim. Only we read it.
type Record struct {
	// Version is set by WriteRecord.
	Version int `json:"version"`
	// Runtime is the name, or absolute path, by which the instance was created.
	Runtime string `json:"runtime,omitempty"`
	// Begun is when the create of the instance began.
	Begun time.Time `json:"begun,omitzero"`
	// BootID is the machine's boot in which the pids below have a meaning.
	BootID string `json:"boot_id,omitempty"`
	// Launch is there from before the exec of the shim binary.
	Launch *Launch `json:"launch,omitempty"`
	// Joined: the instance did not start the shim process that serves it.
	Joined bool `json:"joined,omitempty"`
	// Warm is the id of the warm shim that serves it; "" when it is served by another.
	Warm string `json:"warm,omitempty"`
	// Started: the warm shim did not wait for it, but was started when it came.
	Started bool `json:"started,omitempty"`
	// Launched: the shim process was started by a daemon of this machine, not by a sandboxer of its own.
	Launched bool `json:"launched,omitempty"`
	// Took is when the instance got its shim, or was about to launch it, in clock ticks since boot: of what carries the
	// shim's token, only what began since can be the instance's.
	Took uint64 `json:"took,omitempty"`
	// Shim is the process that serves it, once verified.
	Shim *Proc `json:"shim,omitempty"`
	// Endpoint is how to reach that process, as bootstrap.json says it, which may get lost.
	Endpoint *Endpoint `json:"endpoint,omitempty"`
	// Created: the Create of the task, or of the sandbox, was answered.
	Created bool `json:"created,omitempty"`
	// Abandoned: the create has failed, or its caller has given up; what it has made is being taken back, whatever the
	// shim says of it.
	Abandoned bool `json:"abandoned,omitempty"`
	// Deleted: the Delete of the task was answered; what follows it may not be done yet.
	Deleted bool `json:"deleted,omitempty"`
	// Lingers: the shim has said yes to its shutdown and still runs; all that is left to do is to wait for its end and
	// to clean up.
	Lingers bool `json:"lingers,omitempty"`
	// Task is the task's last known state.
	Task *TaskState `json:"task,omitempty"`
	// Execs by their ids; no value is nil.
	Execs map[string]*ExecState `json:"execs,omitempty"`
}

// Launch is the trace of a launch that may have been cut short.
type Launch struct {
	// Token finds every process that the launch started: by a variable in its environment or, where it holds the id of a
	// warm shim, by that id.
	Token  string    `json:"token,omitempty"`
	Binary string    `json:"binary,omitempty"`
	At     time.Time `json:"at,omitzero"`
	// Answered is when the shim ran and had not been given any task, in clock ticks since boot; 0 until then. What
	// carries the token and began later is no shim.
	Answered uint64 `json:"answered,omitempty"`
	// Groups are the ids, other than the instance's, under which the shim may have named its socket.
	Groups []string `json:"groups,omitempty"`
}

// Endpoint is where and how a shim serves the Task API, in the words of bootstrap.json.
type Endpoint struct {
	Version  int    `json:"version"`
	Protocol string `json:"protocol"`
	Address  string `json:"address"`
}

// Proc identifies a process within one boot.
type Proc struct {
	Pid int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot.
	StartTime uint64 `json:"start_time"`
}

// TaskState is what was last known of a task.
type TaskState struct {
	// Status as the task API names it.
	Status string `json:"status,omitempty"`
	Pid    uint32 `json:"pid,omitempty"`
	// PidStart is the start time of the process; 0 when it is not known to be one of this machine.
	PidStart uint64 `json:"pid_start,omitempty"`
	// PidOwned: the process descends from the shim.
	PidOwned bool   `json:"pid_owned,omitempty"`
	Stdin    string `json:"stdin,omitempty"`
	Stdout   string `json:"stdout,omitempty"`
	Stderr   string `json:"stderr,omitempty"`
	Terminal bool   `json:"terminal,omitempty"`
	// Exit is nil until the exit is known.
	Exit *Exit `json:"exit,omitempty"`
	// Cgroup is the directory of the process's memory cgroup, "" when it has none of its own that can be seen; OOMKills
	// is how many processes had been killed in it for lack of memory when that was recorded.
	Cgroup   string `json:"cgroup,omitempty"`
	OOMKills uint64 `json:"oom_kills,omitempty"`
	// OOM: a process of the task, most likely this one, was ended for lack of memory.
	OOM bool `json:"oom,omitempty"`
	// Stopped is when the process was first seen stopped, where its shim did not say since when it is.
	Stopped time.Time `json:"stopped,omitzero"`
}

// ExecState is what was last known of an exec.
type ExecState struct {
	Pid  uint32 `json:"pid,omitempty"`
	Exit *Exit  `json:"exit,omitempty"`
	// Deleted: the shim has deleted it, and its client was not given the exit.
	Deleted bool `json:"deleted,omitempty"`
	// Stopped as in TaskState.
	Stopped time.Time `json:"stopped,omitzero"`
}

// Exit is a recorded exit, and whether subscribers have been told of it.
type Exit struct {
	Pid    uint32    `json:"pid,omitempty"`
	Status uint32    `json:"status,omitempty"`
	At     time.Time `json:"at,omitzero"`
	// Told: the exit event was published; DeleteTold: the delete event was.
	Told       bool `json:"told,omitempty"`
	DeleteTold bool `json:"delete_told,omitempty"`
	// Tries counts how often the exit event was about to be published.
	Tries int `json:"tries,omitempty"`
	// Owed is how often the exit event is to be published again, unless the task is deleted before; Spoken is when it
	// was the last time.
	Owed   int       `json:"owed,omitempty"`
	Spoken time.Time `json:"spoken,omitzero"`
}

// WriteRecord replaces the record, with the Version that this code writes. r itself is not changed.
func (b *Bundle) WriteRecord(r *Record) error {
	data, err := r.marshal()
	if err != nil {
		return errors.Wrapf(err, "cannot write the record of %s", b.Path)
	}
	return writeFile(b.file(recordFile), data, 0o600)
}

// HasRecord tells whether there is a record, or something else in its place.
func (b *Bundle) HasRecord() bool {
	_, err := os.Lstat(b.file(recordFile))
	return err == nil
}

// ReadRecord returns the record. Errors: NotFound when there is none (the bundle of another daemon, or a create that
// was cut short); ErrForeign when it is damaged or from a version of this code that is too new.
func (b *Bundle) ReadRecord() (*Record, error) {
	path := b.file(recordFile)
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	r, err := parseRecord(data)
	if err != nil {
		return nil, errors.Wrapf(ErrForeign, "cannot use %s: %v", path, err)
	}
	return r, nil
}

func parseRecord(data []byte) (*Record, error) {
	// The version first: the fields of a newer one may have other types.
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, errors.Wrap(err, "damaged")
	}
	if v.Version < 1 || v.Version > RecordVersion {
		return nil, errors.Errorf("version %d, want 1 to %d", v.Version, RecordVersion)
	}
	r := &Record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, errors.Wrap(err, "damaged")
	}
	if r.Shim != nil && r.Shim.Pid <= 0 {
		return nil, errors.Errorf("damaged: shim pid %d", r.Shim.Pid)
	}
	for id, e := range r.Execs {
		if e == nil {
			return nil, errors.Errorf("damaged: nothing for exec %q", id)
		}
	}
	return r, nil
}
