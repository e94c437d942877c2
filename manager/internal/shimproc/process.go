// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/manager/internal/await"
	"github.com/shimyard/shimyard/shimclient"
)

// State is what is known of the way to a shim process.
type State int

const (
	Connecting State = iota // not yet connected, or the connection was lost
	Connected               // calls go through
	// Unresponsive: two calls in a row, the second a Connect, were not answered, or there is no connection for as long.
	Unresponsive
	Ended // proven dead, or released by its last member
)

const (
	firstPause  = 5 * time.Millisecond // between attempts to connect
	lastPause   = time.Second
	verifyTries = 3           // to verify the pid again
	dumpTime    = time.Second // for a shim to write its stacks
	// for a probe of an unresponsive shim at least; each has its own deadline, too
	probePause = 500 * time.Millisecond
	// the first version of the Task API whose shims tell all changes by themselves
	vouchedVersion = 3
	anewRounds     = 30 // probes between two on a connection of their own, after the first few
)

// Names of the timeouts in containerd's [timeouts] section, as stock containerd calls them. They are read at each use.
const (
	// TimeoutLoad bounds how long a call waits for the connection to a shim, and how long a shim that can only be
	// judged by its connection (vsock, not launched by us) may stay unreachable before it counts as dead.
	TimeoutLoad = "io.containerd.timeout.shim.load"
	// TimeoutCleanup bounds one attempt to clean up, and how long a create waits for an id that is still being cleaned.
	TimeoutCleanup = "io.containerd.timeout.shim.cleanup"
	// TimeoutShutdown bounds the Shutdown call and the wait for the process to go after it.
	TimeoutShutdown = "io.containerd.timeout.shim.shutdown"
)

// Link is one connection with its Task client; immutable, replaced as a whole.
type Link struct {
	Conn *shimclient.Conn
	Task *shimclient.Task
}

// Process is one shim process: an address that serves the Task API, however many instances are behind it. Safe for
// concurrent use.
type Process struct {
	reg *Registry
	// Endpoint is where it serves. It never changes.
	Endpoint shimclient.Endpoint
	// name is that in the registry, whose lock guards it: the endpoint, unless another process has that.
	name string
	// over is closed when the process is proven dead or was released by its last member.
	over chan struct{}

	// noAddress says why the address is not known; nil when it is. It never changes.
	noAddress error

	tries atomic.Int32 // to verify the pid after the launch

	// mu guards all below. Members' locks may be taken under it; nothing is read, sent or waited for.
	mu sync.Mutex
	// +checklocks:mu
	course
	// +checklocks:mu
	version int // of the Task API in use
	// +checklocks:mu
	link *Link
	// +checklocks:mu
	identity
	// +checklocks:mu
	trail
	// +checklocks:mu
	trouble
	// +checklocks:mu
	behind map[Member]struct{}
	// +checklocks:mu
	deadlines shimclient.Deadlines // of its runtime; nil before anything is behind it
	// +checklocks:mu
	log *shimclient.Log
	// +checklocks:mu
	keeper Keeper // nil for one that was started for one instance
}

// course is the state of a process and what goes with it; Process.toLocked alone changes the state.
type course struct {
	state   State
	since   time.Time
	changed chan struct{} // closed and replaced at every transition
	closing bool          // the last member is leaving: none may join
	died    bool
	killed  bool // by us
}

// identity is which process it is.
type identity struct {
	pid       shimclient.ProcessID // verified; zero when there is none
	listener  int                  // who made the socket listen that it was reached by; 0 when that is not known
	contested bool                 // another process has, or had, its address
}

// trail is by what processes of the shim are found that there is no connection to.
type trail struct {
	// launched tells that this machine's daemon, this one or an earlier one, started it: only then does a refused
	// connect mean anything. False for the address that a sandboxer behind a proxy plugin hands over.
	launched bool
	// traced: its launch is on record, so that no process of that means that it has ended; only for one without an
	// address.
	traced bool
	upAt   uint64 // when it ran and had no task yet, in clock ticks since boot; 0 when that is not known
	// tokens and dirs are the launches and bundles by which the process is found: of members that may have started it,
	// for good, and of others while they are behind it.
	tokens map[string]struct{}
	dirs   map[string]struct{}
	kept   string // the token of the launch for the keeper; "" for none
}

// trouble is what goes on with a process that does not answer or cannot be reached.
type trouble struct {
	failure   error // of the last connect, while there is no connection
	failedAt  time.Time
	probing   bool
	escalates bool // a goroutine waits for the time to end it
}

func newProcess(r *Registry, ep shimclient.Endpoint) *Process {
	return &Process{
		reg: r, Endpoint: ep, name: ep.String(), version: ep.Version, over: make(chan struct{}),
		course: course{since: time.Now(), changed: make(chan struct{})},
		trail:  trail{tokens: make(map[string]struct{}), dirs: make(map[string]struct{})},
		behind: make(map[Member]struct{}),
	}
}

func (p *Process) spawn(f func()) <-chan struct{} { return p.reg.config.Spawn(f) }

// Traces are the tokens and directories by which processes of this shim can be found.
func (p *Process) Traces() (tokens, dirs []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.tokens)), slices.Collect(maps.Keys(p.dirs))
}

// TaskVersion is the version of the Task API that is spoken.
func (p *Process) TaskVersion() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.version
}

// IsCurrent tells whether what the process says need not be asked for: it speaks version 3, is connected, and not
// suspected of being silent.
func (p *Process) IsCurrent() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.version >= vouchedVersion && p.state == Connected && !p.probing
}

// limits are the deadlines of calls to the process.
func (p *Process) limits() shimclient.Deadlines {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deadlines == nil {
		return p.reg.config.Deadlines(shimclient.Binary{})
	}
	return p.deadlines
}

// IsOver tells whether the process is proven dead, or the daemon has no use for it any more.
func (p *Process) IsOver() bool { return await.IsClosed(p.over) }

// IsDead tells whether the process is proven dead.
func (p *Process) IsDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.died
}

// Verified is the pid of the shim, as it was verified once; zero where it is not, or not yet.
func (p *Process) Verified() shimclient.ProcessID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// IsGone tells whether the process, by its verified pid, has ended, whatever listens at its address by now.
func (p *Process) IsGone() bool {
	pid := p.Verified()
	return pid != (shimclient.ProcessID{}) && !pid.Alive()
}

// isOther tells whether a pid is known not to be the process's.
func (p *Process) isOther(pid shimclient.ProcessID) bool {
	mine, none := p.Verified(), shimclient.ProcessID{}
	return mine != none && pid != none && mine != pid
}

// contest notes that another process has, or had, its address.
func (p *Process) contest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.contested = true
}

// SetLog gives the process the log of its shim, which it closes at its end. One that has a log, or has ended, closes
// c at once.
func (p *Process) SetLog(c *shimclient.Log) {
	p.mu.Lock()
	if p.state == Ended || p.log != nil {
		p.mu.Unlock()
		_ = c.Close()
		return
	}
	p.log = c
	p.mu.Unlock()
}

// CloseLog takes the log from the process, with what the shim has written until then. SetLog gives it one again.
func (p *Process) CloseLog() {
	p.mu.Lock()
	c := p.log
	p.log = nil
	p.mu.Unlock()
	if c != nil {
		_ = c.Close()
	}
}

// LogAs makes what the shim logs from now on that of an id.
func (p *Process) LogAs(namespace, id string) {
	p.mu.Lock()
	c := p.log
	p.mu.Unlock()
	if c != nil {
		c.SetFields(log.Fields{"id": id, "namespace": namespace})
	}
}

// +checklocks:p.mu
func (p *Process) toLocked(st State) {
	if p.state == st || p.state == Ended {
		return
	}
	p.state, p.since = st, time.Now()
	p.wakeLocked()
}

// +checklocks:p.mu
func (p *Process) wakeLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Watch returns the link (nil while there is none), the state and a channel that is closed when they change.
func (p *Process) Watch() (*Link, State, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link, p.state, p.changed
}

// Status is what is known of a process at one moment.
type Status struct {
	Address, Runtime string
	Members, Version int // Version is of the Task API
	State            State
	Since            time.Time
	Linked           bool // there is a connection
	// Failure is of the last connect, while there is no connection, at FailedAt; nil for none.
	Failure  error
	FailedAt time.Time
}

// Status is what is known of the process now. Nothing is asked.
func (p *Process) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Status{
		Address: p.Endpoint.String(), Runtime: p.runtimeLocked(), Members: len(p.behind), Version: p.version,
		State: p.state, Since: p.since, Linked: p.link != nil, Failure: p.failure, FailedAt: p.failedAt,
	}
}

// Log is the log of the shim; nil while it is not open.
func (p *Process) Log() *shimclient.Log {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log
}

// String names the state for people.
func (s State) String() string {
	return [...]string{"connecting", "connected", "unresponsive", "ended"}[s]
}

var (
	// ErrDead is returned by calls on a shim process that is proven dead. Its class is NotFound: containerd's clients
	// (CRI, moby) take NotFound from State, Kill and Delete for "already gone".
	ErrDead = errors.Wrap(errdefs.ErrNotFound, "the shim process is dead")

	// ErrClosing is returned for a join of a process whose last instance has just left it.
	ErrClosing = errors.Wrap(errdefs.ErrUnavailable, "the shim process is shutting down")

	// ErrStranger: what listens at the address is not the process on record.
	ErrStranger = errors.Wrap(errdefs.ErrNotFound, "another process listens at the address that it should have")
)

// Unavailable says since when a shim cannot be used and what can be done about it.
func Unavailable(id string, since time.Time, what string) error {
	return errors.Wrapf(errdefs.ErrUnavailable,
		"shim of %s %s since %s (%s ago); its containers go on, calls work again as soon as it answers",
		id, what, since.UTC().Format(time.RFC3339), time.Since(since).Round(time.Second))
}

// errLost says why a process cannot be reached at all, and what becomes of what it serves.
func errLost(why error) error {
	return errors.Wrapf(errdefs.ErrUnavailable, "cannot tell how to reach the shim, which runs, as do its containers; "+
		"what is left is cleaned up once it has ended: %v", why)
}

func errNotOurs(p *Process) error {
	return errors.Wrapf(errdefs.ErrFailedPrecondition, "another shim is known at %s", p.Endpoint)
}
