// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"time"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// Passage is how an instance came by its shim.
type Passage struct {
	Runtime  string
	Begun    time.Time      // when the create began; the zero time for what another containerd has left
	Launch   *bundle.Launch // of its own shim, which may have joined another process; nil for none. Read only
	Joined   bool           // the process was started for another instance, or for none
	Launched bool           // a daemon of this machine started the process
	Warm     string         // the id of the warm shim that it was given; "" for none
	Started  bool           // that one was started when the instance came
	// Took is when the instance got its shim, in clock ticks since boot; 0 when that is not known.
	Took uint64
	// Shim is its verified pid; zero when there is none, or when it is from before a reboot.
	Shim shimclient.ProcessID
	// Endpoint is how to reach it; nil when that is not known. Read only.
	Endpoint *bundle.Endpoint
	// EarlierBoot: the record is from before the machine's last start, so that no process of then is one of now.
	EarlierBoot bool
}

// Passage of the instance, as far as it is on record.
func (l *Ledger) Passage() Passage {
	boot := shimclient.BootID()
	l.mu.Lock()
	defer l.mu.Unlock()
	g := Passage{
		Runtime: l.rec.Runtime, Begun: l.rec.Begun, Launch: l.rec.Launch, Joined: l.rec.Joined,
		Launched: l.rec.Launched, Warm: l.rec.Warm, Started: l.rec.Started, Took: l.rec.Took,
		Endpoint: l.rec.Endpoint, EarlierBoot: l.rec.BootID != "" && l.rec.BootID != boot,
	}
	if l.rec.BootID == boot {
		g.Shim = ProcessOf(l.rec.Shim)
	}
	return g
}

// Token of the launch; "" for none.
func (g Passage) Token() string {
	if g.Launch == nil {
		return ""
	}
	return g.Launch.Token
}

// Answered is when the shim that the instance has launched answered; 0 for one that another was launched for.
func (g Passage) Answered() uint64 {
	if g.Launch == nil || g.Joined {
		return 0
	}
	return g.Launch.Answered
}

// Source is the way in a word, for metrics and for clients; "" before it is known.
func (g Passage) Source() string {
	switch {
	case g.Started:
		return "start"
	case g.Warm != "":
		return "warm"
	case g.Joined:
		return "join"
	case g.Launch != nil:
		return "start"
	}
	return ""
}

// Launching records that a shim is about to be started for the instance and returns the launch's token. A second
// start, after the process of a group has gone, is part of the same launch.
func (l *Ledger) Launching(binary string, groups []string) (token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	token = shimclient.NewToken()
	if l.rec.Launch != nil {
		token = l.rec.Launch.Token
	}
	l.rec.Launch = &bundle.Launch{Token: token, Binary: binary, At: time.Now().UTC(), Groups: groups}
	if l.rec.Took == 0 {
		l.rec.Took = shimclient.Now()
	}
	return token
}

// RecordAnswer notes when the shim that was launched for the instance had answered.
func (l *Ledger) RecordAnswer(at uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	launch := *l.rec.Launch // others have the pointer
	launch.Answered = at
	l.rec.Launch = &launch
}

// GivenWarm records that a warm shim serves the instance. takeBack puts the record back to what it was before.
func (l *Ledger) GivenWarm(id string, took uint64) (takeBack func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.rec
	l.rec.Warm, l.rec.Joined, l.rec.Launched, l.rec.Launch = id, true, true, nil
	l.rec.Took = took
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.rec = before
	}
}

// StartedWarm records that the warm shim that the instance is given next is started for it.
func (l *Ledger) StartedWarm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec.Started = true
}

// Join records that another's shim is to serve the instance.
func (l *Ledger) Join() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec.Joined, l.rec.Took = true, shimclient.Now()
}

// Attached records whose process the instance is behind: one that was made for it, or not; one that a daemon of this
// machine started, or not.
func (l *Ledger) Attached(created, launched bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec.Joined = l.rec.Joined || !created
	l.rec.Launched = launched
}

// RecordEndpoint keeps how to reach the shim in the record too.
func (l *Ledger) RecordEndpoint(ep shimclient.Endpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec.Endpoint = &bundle.Endpoint{Version: ep.Version, Protocol: ep.Protocol, Address: ep.Address}
}

// RecordShim keeps the verified pid of the shim; a zero one is not known and changes nothing.
func (l *Ledger) RecordShim(pid shimclient.ProcessID) {
	if (pid == shimclient.ProcessID{}) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec.Shim = ProcOf(pid)
}

// ProcOf is a process as a record names it; nil for none.
func ProcOf(id shimclient.ProcessID) *bundle.Proc {
	if (id == shimclient.ProcessID{}) {
		return nil
	}
	return &bundle.Proc{Pid: id.Pid, StartTime: id.StartTime}
}

// ProcessOf is ProcOf the other way round.
func ProcessOf(rec *bundle.Proc) shimclient.ProcessID {
	if rec == nil {
		return shimclient.ProcessID{}
	}
	return shimclient.ProcessID{Pid: rec.Pid, StartTime: rec.StartTime}
}
