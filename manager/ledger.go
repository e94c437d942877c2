// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"sync"
	"time"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/shimclient"
)

// ledger is what one instance has to remember beyond the life of the daemon, and what keeps that right: the record as
// the bundle has it, the exits that are known, which of them subscribers were told, the Waits to wake, the changes of
// the status that are under way, and the writing of the record.
//
// It has no lock of its own for what it remembers: the state of the instance and the record must often be judged, or
// changed, in one step (an exit is matched differently before Create is answered; nothing is told once a Delete is
// claimed). So mu is the instance's mutex, and a method whose name ends in Locked is called with it held; all other
// methods take it, and are called without. saving is above mu: it is held over the write of the file, which mu never
// is.
//
// The ledger knows neither the manager nor a shim. What it needs of the outside is in its keeper.
type ledger struct {
	keeper keeper
	tells  bool // exits are for the daemon to tell where the shim does not: a task's, not a sandbox's

	// saving orders the writes of the record file and guards sealed: nothing is written any more.
	saving sync.Mutex
	sealed bool

	// exited is closed when the exit of the init process is known.
	exited chan struct{}

	// mu is the instance's and guards all below.
	mu      *sync.Mutex
	rec     bundle.Record
	waiters map[*waiting]struct{}
	status  statusChanges
	hearing hearing
	telling telling
	writing writing
}

// keeper is what a ledger needs of the instance that it belongs to. The methods whose names end in Locked are called
// with the ledger's lock held; the others without it, except daemonStart and later, which take no lock.
type keeper interface {
	// context is for work that no caller waits for, with the fields that the log names the instance by.
	context() context.Context
	// spawn runs f in a goroutine that the manager waits for, later does so d from now.
	spawn(f func())
	later(d time.Duration, f func())
	// sleep returns false when the manager is closed before d has passed.
	sleep(d time.Duration) bool
	// writeTurn waits until the file of a record may be written behind the follower of events; end makes room for the
	// next.
	writeTurn() (end func())
	// daemonStart is when the manager began.
	daemonStart() time.Time
	// recordBundleLocked is where the record is written; nil while there is no bundle.
	recordBundleLocked() *bundle.Bundle
	// announceLocked wakes all who watch the instance.
	announceLocked()
	// replay tells exits that the shim does not tell, repeat those that may not have been heard, until nothing is due.
	replay()
	repeat()
}

// statusChanges are the calls that give the task another status: an answer to State counts only if none was begun or
// done since it was asked.
type statusChanges struct {
	underway int
	epoch    uint64    // counts them, begun and done
	stated   time.Time // when the shim last answered State
	unsure   bool      // one has failed, or the record is an earlier daemon's: the status is what the shim says next
}

// hearing is what the shim has told before it could be recorded.
type hearing struct {
	exits   map[process]bundle.Exit // heard before it was known whose pid it is
	deleted bool                    // the shim has told the deletion
}

// telling is what is being told to subscribers.
type telling struct {
	replaying bool          // exits that are known are told if the shim does not
	repeating bool          // exits that were told to a young daemon's subscribers are told again
	speakers  int           // what is being told at this moment
	silence   chan struct{} // closed when there are no speakers any more
	oomTold   bool          // this daemon has told that init was ended for lack of memory
	oomDue    time.Time     // when an OOM kill that the shim has told is to be told again; zero when it is not
}

// writing is what is known of the record's file.
type writing struct {
	due    bool // a write behind the follower has not begun yet
	failed bool // the record is not as it should be on disk
}

func newLedger(mu *sync.Mutex, k keeper, tells bool) *ledger {
	return &ledger{keeper: k, tells: tells, mu: mu, exited: make(chan struct{}), waiters: make(map[*waiting]struct{})}
}

// beginLocked starts the record of an instance that there is nothing of yet.
func (l *ledger) beginLocked(runtime string) {
	l.rec = bundle.Record{
		Version: bundle.RecordVersion, Runtime: runtime, Begun: time.Now().UTC(), BootID: shimclient.BootID(),
	}
}

// loadLocked takes over the record that an earlier daemon wrote.
func (l *ledger) loadLocked(rec *bundle.Record) {
	l.rec = *rec
	if rec.Task != nil && rec.Task.Exit != nil {
		close(l.exited)
	}
}

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
		runtime: l.rec.Runtime, launch: l.rec.Launch, joined: l.rec.Joined, launched: l.rec.Launched, warm: l.rec.Warm, started: l.rec.Started,
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

// recordOf is a process as a record names it; nil for none.
func recordOf(id shimclient.ProcessID) *bundle.Proc {
	if (id == shimclient.ProcessID{}) {
		return nil
	}
	return &bundle.Proc{Pid: id.Pid, StartTime: id.StartTime}
}

// procOf is recordOf the other way round.
func procOf(rec *bundle.Proc) shimclient.ProcessID {
	if rec == nil {
		return shimclient.ProcessID{}
	}
	return shimclient.ProcessID{Pid: rec.Pid, StartTime: rec.StartTime}
}

// fromAnotherBoot tells whether the record is from before the machine's last start: no process of then is one of now.
func (l *ledger) fromAnotherBoot() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec.BootID != "" && l.rec.BootID != shimclient.BootID()
}

// wasCreated tells whether the shim has ever made the task, or the sandbox.
func (l *ledger) wasCreated() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec.Created
}

// abandon records that the create has come to nothing. A daemon that dies while it is undone, which may take as long
// as a shim is silent, leaves the bundle for the next one, which must not take what the shim has made after all for a
// task.
func (l *ledger) abandon() error {
	l.mu.Lock()
	l.rec.Abandoned = true
	l.mu.Unlock()
	return l.persist()
}

// abandonedLocked tells whether a create, or a start of a sandbox, has come to nothing.
func (l *ledger) abandonedLocked() bool { return l.rec.Abandoned }

// wasAbandoned: for what was created once, as a sandbox that did not start, it has no meaning.
func (l *ledger) wasAbandoned() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec.Abandoned && !l.rec.Created
}

// markLingering records that all that is left to do is to wait for the end of the shim. A daemon that dies meanwhile
// leaves the bundle for the next one, which must not take the task for a living one.
func (l *ledger) markLingering() {
	l.mu.Lock()
	l.rec.Lingers = true
	l.mu.Unlock()
	l.save()
}

func (l *ledger) wasLingering() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec.Lingers
}

// endpointLocked is how to reach the shim, as the record has it; nil when that is not known.
func (l *ledger) endpointLocked() *bundle.Endpoint { return l.rec.Endpoint }

func (l *ledger) knowsEndpoint() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.endpointLocked() != nil
}

// begunLocked is when the create began; the zero time for what another containerd has left.
func (l *ledger) begunLocked() time.Time { return l.rec.Begun }

// recordLocked is a copy of the whole record, for a bundle that is made with it.
func (l *ledger) recordLocked() *bundle.Record { return cloneRecord(&l.rec) }
