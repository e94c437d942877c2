// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/pkg/errors"
)

// The kinds of a trace entry.
const (
	KindExec   = "exec"   // the binary was executed; Action: "start", "delete", "info", "version", "daemon"
	KindRPC    = "rpc"    // a call came in; Action: the method
	KindAnswer = "answer" // a call was answered; Action: the method
	KindEvent  = "event"  // an event was delivered; Action: the topic
	KindExit   = "exit"   // a daemon ended in an orderly way
)

// Option is one message among the start options.
type Option struct {
	TypeURL string          `json:"type_url"`
	Value   []byte          `json:"value,omitempty"`
	Decoded json.RawMessage `json:"decoded,omitempty"` // protobuf JSON, for types that are linked in
}

// Entry is one line of the trace. Which fields are set depends on the kind.
type Entry struct {
	Time   time.Time `json:"time"`
	Kind   string    `json:"kind"`
	Action string    `json:"action"`
	Pid    int       `json:"pid"`

	Argv []string `json:"argv,omitempty"`
	Env  []string `json:"env,omitempty"` // NAME=VALUE in the order received, selected names only, duplicates kept
	Cwd  string   `json:"cwd,omitempty"`
	// Stdin is "none", "bootstrap", "legacy", "unknown", or "unread" where a fault came first.
	Stdin     string          `json:"stdin,omitempty"`
	StdinLen  int             `json:"stdin_len,omitempty"`
	StdinHash string          `json:"stdin_hash,omitempty"` // SHA-256 in hex
	Params    json.RawMessage `json:"params,omitempty"`     // BootstrapParams as protobuf JSON, without the extensions
	Options   []Option        `json:"options,omitempty"`    // what was sent
	Applied   []Option        `json:"applied,omitempty"`    // what a shim of this generation heeds of it

	Service string          `json:"service,omitempty"`
	ID      string          `json:"id,omitempty"`
	ExecID  string          `json:"exec_id,omitempty"`
	Request json.RawMessage `json:"request,omitempty"`
	Error   string          `json:"error,omitempty"`
}

const traceFile = "trace.jsonl"

func readTrace(home string) ([]Entry, error) {
	data, err := os.ReadFile(filepath.Join(home, traceFile))
	if err != nil {
		return nil, errors.Wrap(err, "reading the trace")
	}
	var entries []Entry
	for line := range bytes.Lines(data) {
		if !bytes.HasSuffix(line, []byte{'\n'}) {
			break // being written
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, errors.Wrapf(err, "decoding the trace line %q", line)
		}
		entries = append(entries, e)
	}
	return entries, nil
}
