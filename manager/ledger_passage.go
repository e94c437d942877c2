// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"time"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// passage is how an instance came by its shim.
type passage struct {
	runtime  string
	launch   *bundle.Launch // of its own shim, which may have joined another process; nil for none. Read only
	joined   bool           // the process was started for another instance, or for none
	launched bool           // a daemon of this machine started the process
	warm     string         // the id of the warm shim that it was given; "" for none
	started  bool           // that one was started when the instance came
	took     uint64         // when the instance got its shim, in clock ticks since boot; 0 when that is not known
}

// passage of the instance, as far as it is on record.
func (l *ledger) passage() passage {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.passageLocked()
}

func (l *ledger) passageLocked() passage {
	return passage{
		runtime: l.rec.Runtime, launch: l.rec.Launch, joined: l.rec.Joined, launched: l.rec.Launched,
		warm: l.rec.Warm, started: l.rec.Started,
		took: l.rec.Took,
	}
}

// token of the launch; "" for none.
func (g passage) token() string {
	if g.launch == nil {
		return ""
	}
	return g.launch.Token
}

// source is the way in a word, for metrics and for clients; "" before it is known.
func (g passage) source() string {
	switch {
	case g.started:
		return "start"
	case g.warm != "":
		return "warm"
	case g.joined:
		return "join"
	case g.launch != nil:
		return "start"
	}
	return ""
}

// launchingLocked records that a shim is about to be started for the instance and returns the launch's token. A
// second start, after the process of a group has gone, is part of the same launch.
func (l *ledger) launchingLocked(binary string, groups []string) (token string) {
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

// recordAnswer notes when the shim that was launched for the instance had answered.
func (l *ledger) recordAnswer(at uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	launch := *l.rec.Launch // others have the pointer
	launch.Answered = at
	l.rec.Launch = &launch
}

// answered is when the shim that the instance has launched answered, as recorded; 0 for one that another was launched
// for.
func (l *ledger) answered() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rec.Launch == nil || l.rec.Joined {
		return 0
	}
	return l.rec.Launch.Answered
}

// givenWarmLocked records that a warm shim serves the instance, and returns the record as it was before.
func (l *ledger) givenWarmLocked(id string, took uint64) (before bundle.Record) {
	before = l.rec
	l.rec.Warm, l.rec.Joined, l.rec.Launched, l.rec.Launch = id, true, true, nil
	l.rec.Took = took
	return before
}

// startedWarmLocked records that the warm shim that it is given next is started for it.
func (l *ledger) startedWarmLocked() { l.rec.Started = true }

// restoreLocked puts back what givenWarmLocked returned.
func (l *ledger) restoreLocked(before bundle.Record) { l.rec = before }

// joinLocked records that another's shim is to serve the instance.
func (l *ledger) joinLocked() { l.rec.Joined, l.rec.Took = true, shimclient.Now() }

// attachedLocked records whose process the instance is behind.
func (l *ledger) attachedLocked(created, launched bool) {
	l.rec.Joined = l.rec.Joined || !created
	l.rec.Launched = launched
}

// recordEndpointLocked keeps how to reach the shim in the record too.
func (l *ledger) recordEndpointLocked(ep shimclient.Endpoint) {
	l.rec.Endpoint = &bundle.Endpoint{Version: ep.Version, Protocol: ep.Protocol, Address: ep.Address}
}

// recordShim keeps the verified pid of the shim; a zero one is not known and changes nothing.
func (l *ledger) recordShim(pid shimclient.ProcessID) {
	if (pid == shimclient.ProcessID{}) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec.Shim = recordOf(pid)
}

// recordedShim is the verified pid from the record; zero when there is none, or when it is from before a reboot.
func (l *ledger) recordedShim() shimclient.ProcessID {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rec.BootID != shimclient.BootID() {
		return shimclient.ProcessID{}
	}
	return procOf(l.rec.Shim)
}

// endpointLocked is how to reach the shim, as the record has it; nil when that is not known.
func (l *ledger) endpointLocked() *bundle.Endpoint { return l.rec.Endpoint }

func (l *ledger) knowsEndpoint() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.endpointLocked() != nil
}
