// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bufio"
	"context"
	"encoding/binary"
	"net"
	"sync"

	"github.com/containerd/ttrpc"
)

// A message of ttrpc's begins with its length (4 bytes), its stream (4), its kind and its flags.
const (
	frameHeader  = 10
	kindRequest  = 1
	kindResponse = 2

	// maxFrame is ttrpc's limit of a message. What is longer, ttrpc reads over by itself, and fails its call.
	maxFrame = 4 << 20
	// keptFrame is how long a buffer may be that is kept for the next message.
	keptFrame = 16 << 10
)

// answers is a connection on which ttrpc does not see answers whose callers have left. ttrpc logs an error for
// each: every Wait that a client gave up would be reported when its container ends, and every call that passed its
// deadline when the shim wakes up.
//
// The first message that a call writes tells its stream. One call at a time is let as far as that, as ttrpc itself does
// it.
type answers struct {
	net.Conn
	out    int           // of the message being written, what is still to come; ttrpc writes one at a time
	in     *bufio.Reader // what has come from the connection
	frame  []byte        // the message that ttrpc is reading, to the end of which it goes without waiting
	unread []byte        // the rest of frame
	over   int           // of a message longer than maxFrame, what is still to come
	ended  error         // why nothing comes after unread

	starting sync.Mutex // held by next
	mu       sync.Mutex
	next     *sentCall       // whose request is the next to be written; nil: it has been
	open     map[uint32]bool // streams of calls without an answer; true: the caller has left
	passed   uint32          // the stream of the answer that ttrpc has in its hands; 0: none
	handedOn chan struct{}   // closed once ttrpc has given it to its call
	closed   bool            // ttrpc may not come back for another message
}

// sentCall is a call under way.
type sentCall struct {
	stream  uint32 // 0: its request has not been written
	givenUp bool
}

func newAnswers(conn net.Conn) *answers {
	return &answers{Conn: conn, in: bufio.NewReaderSize(conn, 512), open: make(map[uint32]bool)}
}

// intercept makes a call. When ctx ends the answer is first marked unwanted, then the call is given up.
func (a *answers) intercept(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo,
	invoke ttrpc.Invoker) error {
	c := &sentCall{}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		a.giveUp(c)
		close(done)
	})
	defer stop()
	a.starting.Lock()
	a.mu.Lock()
	a.next = c
	a.mu.Unlock()
	defer a.started(c) // without a request, if that is not there yet
	return invoke(endingContext{ctx, done}, req, resp)
}

// endingContext is one that ends a moment after its parent.
type endingContext struct {
	context.Context
	done <-chan struct{}
}

// Done implements context.Context.
func (c endingContext) Done() <-chan struct{} { return c.done }

// Err implements context.Context.
func (c endingContext) Err() error {
	select {
	case <-c.done:
		return c.Context.Err()
	default:
		return nil
	}
}

// started lets the next call go ahead, if c is not past that.
func (a *answers) started(c *sentCall) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.startedLocked(c)
}

func (a *answers) startedLocked(c *sentCall) {
	if c != nil && a.next == c {
		a.next = nil
		a.starting.Unlock()
	}
}

// giveUp marks the answer unwanted. One that ttrpc has in its hands already is waited for, which takes no longer than
// it takes its goroutine to be run.
func (a *answers) giveUp(c *sentCall) {
	a.mu.Lock()
	c.givenUp = true
	if _, ok := a.open[c.stream]; ok {
		a.open[c.stream] = true
	}
	var wait chan struct{}
	if c.stream != 0 && c.stream == a.passed {
		wait = a.handedOn
	}
	a.mu.Unlock()
	if wait != nil {
		<-wait
	}
}

// handed notes that ttrpc has given an answer to its call: it reads on, or never will.
func (a *answers) handed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.passed != 0 {
		a.passed = 0
		close(a.handedOn)
	}
}

// Close implements net.Conn for ttrpc, which closes the connection when it reads no more.
func (a *answers) Close() error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.handed()
	return a.Conn.Close()
}

// Write implements net.Conn for ttrpc, which begins each message with a write of its own.
func (a *answers) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if a.out == 0 && len(rest) >= frameHeader {
			a.out = frameHeader + int(binary.BigEndian.Uint32(rest))
			a.request(rest)
		}
		n := min(a.out, len(rest))
		if n == 0 {
			break // no message
		}
		a.out -= n
		rest = rest[n:]
	}
	return a.Conn.Write(p)
}

// request notes the stream of the call whose request this is. Streams of many messages are none of ours: flags tell
// them.
func (a *answers) request(header []byte) {
	if header[8] != kindRequest || header[9] != 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.next
	if c == nil {
		return
	}
	c.stream = binary.BigEndian.Uint32(header[4:])
	a.open[c.stream] = c.givenUp
	a.startedLocked(c)
}

// Read implements net.Conn for ttrpc. A message is passed on when all of it is there.
func (a *answers) Read(p []byte) (int, error) {
	if len(a.unread) == 0 && a.over == 0 {
		a.handed()
	}
	for len(a.unread) == 0 && a.over == 0 {
		if a.ended != nil {
			return 0, a.ended
		}
		a.receive()
	}
	if len(a.unread) > 0 {
		n := copy(p, a.unread)
		a.unread = a.unread[n:]
		return n, nil
	}
	n, err := a.in.Read(p[:min(len(p), a.over)])
	a.over -= n
	return n, err
}

// receive reads the next message, and forgets it if it is unwanted. What came of one that is cut short is passed on.
func (a *answers) receive() {
	if cap(a.frame) > keptFrame {
		a.frame = nil
	}
	a.frame = a.frame[:0]
	if !a.fill(frameHeader) {
		return
	}
	length := binary.BigEndian.Uint32(a.frame)
	if length > maxFrame {
		if a.isLate(a.frame) {
			_, a.ended = a.in.Discard(int(length))
			return
		}
		a.over, a.unread = int(length), a.frame
		return
	}
	if a.fill(frameHeader+int(length)) && a.isWanted(a.frame) {
		a.unread = a.frame
	}
}

// fill reads until there are n bytes of the message.
func (a *answers) fill(n int) bool {
	have := len(a.frame)
	if cap(a.frame) < n {
		a.frame = append(make([]byte, 0, n), a.frame...)
	}
	for have < n && a.ended == nil {
		var m int
		m, a.ended = a.in.Read(a.frame[have:n])
		have += m
	}
	a.frame = a.frame[:have]
	if have < n {
		a.unread = a.frame
		return false
	}
	return true
}

// isWanted tells whether a message is to be passed on, after which its call is not open any more.
func (a *answers) isWanted(frame []byte) bool {
	if frame[8] != kindResponse {
		return true
	}
	stream := binary.BigEndian.Uint32(frame[4:])
	a.mu.Lock()
	defer a.mu.Unlock()
	unwanted, ours := a.open[stream]
	delete(a.open, stream)
	if ours && !unwanted && !a.closed {
		a.passed, a.handedOn = stream, make(chan struct{})
	}
	return !unwanted
}

// isLate tells whether the caller of a message that is too long has left. Its call is not open any more. A caller who
// leaves from now on is not held: the rest of the message may be long in coming.
func (a *answers) isLate(header []byte) bool {
	if header[8] != kindResponse {
		return false
	}
	stream := binary.BigEndian.Uint32(header[4:])
	a.mu.Lock()
	defer a.mu.Unlock()
	late := a.open[stream]
	delete(a.open, stream)
	return late
}
