// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// StartProtocol says what a shim is given on the stdin of `start`.
type StartProtocol string

const (
	// ProtocolAuto chooses by the binary: see [protocolBook].
	ProtocolAuto StartProtocol = "auto"
	// ProtocolBootstrap is a BootstrapParams message: containerd 2.3 and later.
	ProtocolBootstrap StartProtocol = "bootstrap"
	// ProtocolLegacy is the runtime options as an Any, or nothing.
	ProtocolLegacy StartProtocol = "legacy"
)

// StartProtocols are all, the default first.
var StartProtocols = []StartProtocol{ProtocolAuto, ProtocolBootstrap, ProtocolLegacy}

func (p StartProtocol) other() StartProtocol {
	if p == ProtocolBootstrap {
		return ProtocolLegacy
	}
	return ProtocolBootstrap
}

// protocolBook remembers, by the identity of the binary, which start protocol a
// shim speaks, and whether it passes on the id that it is started under.
//
// For auto the rule is: a native executable that holds the name of the
// bootstrap messages' package speaks it (a Go or Rust binary carries the
// descriptor of each message that it links); one that does not is legacy; a
// script or a packed executable does not say, and legacy goes first, because
// shims of containerd 2.4 refuse legacy stdin before they do anything, while
// older ones fail late on BootstrapParams, or go on and lose their options. The
// second guess is taken only after a refusal; see [refused].
//
// What is behind a script may be replaced without a change of the script. A shim that
// was found to speak bootstrap, and that now answers in another form than it did then,
// may have lost its options: it is started once more, and legacy goes first again.
type protocolBook struct {
	mu    sync.Mutex // guards known; not held while a file is read
	known map[FileID]guess
}

type guess struct {
	protocol StartProtocol
	// silent: the file decides nothing, so that a failure without a word may
	// be a refusal too, and what was learnt need not hold.
	silent bool
	// learnt: the shim has answered to the protocol, with a BootstrapResult in
	// protobuf (binary) or in an older form.
	learnt, binary bool
	// named: the shim gives its id to all that it runs, as serviceName has it.
	named bool
}

// outlived reports whether an answer of this form shows that the shim is not the one
// that the protocol was learnt from.
func (g guess) outlived(binary bool) bool {
	return g.silent && g.learnt && g.protocol == ProtocolBootstrap && g.binary && !binary
}

// order returns the protocols to try. The path is looked at anew, as the file
// may have been replaced after it was resolved.
func (b *protocolBook) order(path string, wanted StartProtocol) (_ []StartProtocol, file FileID, g guess) {
	if wanted == ProtocolBootstrap || wanted == ProtocolLegacy {
		return []StartProtocol{wanted}, FileID{}, guess{}
	}
	if alwaysLegacy(path) {
		return []StartProtocol{ProtocolLegacy}, FileID{}, guess{}
	}
	file, err := IdentifyFile(path)
	if err != nil {
		return []StartProtocol{ProtocolLegacy}, FileID{}, guess{}
	}
	g = b.look(path, file)
	return []StartProtocol{g.protocol, g.protocol.other()}, file, g
}

// look returns what is known of a file, which is read the first time.
func (b *protocolBook) look(path string, file FileID) guess {
	b.mu.Lock()
	g, ok := b.known[file]
	b.mu.Unlock()
	if !ok {
		g = inspect(path)
		b.put(file, g)
	}
	return g
}

// named reports whether a shim passes on its id, by the content of its binary.
func (b *protocolBook) named(path string) bool {
	file, err := IdentifyFile(path)
	return err == nil && b.look(path, file).named
}

// unname records that it does not, whatever the content says.
func (b *protocolBook) unname(path string) {
	file, err := IdentifyFile(path)
	if err != nil {
		return
	}
	g := b.look(path, file)
	g.named = false
	b.put(file, g)
}

// learn records what a shim answered to.
func (b *protocolBook) learn(file FileID, g guess) {
	if file != (FileID{}) {
		g.learnt = true
		b.put(file, g)
	}
}

// forget makes the file be looked at anew.
func (b *protocolBook) forget(file FileID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.known, file)
}

func (b *protocolBook) put(file FileID, g guess) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known == nil {
		b.known = make(map[FileID]guess)
	}
	b.known[file] = g
}

// alwaysLegacy names the shims that read options from stdin whatever they link,
// by the same rule as the stock runtime.
func alwaysLegacy(path string) bool {
	base := filepath.Base(path)
	return strings.Contains(base, "shim-runc-v1") || strings.Contains(base, "shim-runhcs-v1")
}

var (
	bootstrapPackage = []byte("containerd.runtime.bootstrap.v1")
	upxMark          = []byte("UPX!")
)

// inspect guesses the protocol from the content of a binary.
func inspect(path string) guess {
	undecided := guess{protocol: ProtocolLegacy, silent: true}
	f, err := os.Open(path)
	if err != nil {
		return undecided
	}
	defer f.Close()
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil || !nativeMagic(head) {
		return undecided
	}
	found, err := scan(f, bootstrapPackage, []byte(serviceName), upxMark)
	if err != nil {
		return undecided
	}
	bootstrap, named, packed := found[0], found[1], found[2]
	switch {
	case bootstrap:
		return guess{protocol: ProtocolBootstrap, named: named}
	case packed:
		return undecided
	}
	return guess{protocol: ProtocolLegacy, named: named}
}

// nativeMagic tells ELF, PE and Mach-O (of both orders, and universal).
func nativeMagic(head []byte) bool {
	if string(head) == "\x7fELF" || string(head[:2]) == "MZ" {
		return true
	}
	switch [4]byte(head) {
	case [4]byte{0xfe, 0xed, 0xfa, 0xce}, [4]byte{0xfe, 0xed, 0xfa, 0xcf},
		[4]byte{0xce, 0xfa, 0xed, 0xfe}, [4]byte{0xcf, 0xfa, 0xed, 0xfe},
		[4]byte{0xca, 0xfe, 0xba, 0xbe}:
		return true
	}
	return false
}

// scan looks for marks, and tells of each whether it is there.
func scan(r io.Reader, marks ...[]byte) (found []bool, err error) {
	const chunk = 256 << 10
	found = make([]bool, len(marks))
	keep := 0 // what a mark across two chunks needs
	for _, mark := range marks {
		keep = max(keep, len(mark)-1)
	}
	buf := make([]byte, keep+chunk)
	have := 0
	for slices.Contains(found, false) {
		n, err := io.ReadFull(r, buf[have:])
		data := buf[:have+n]
		for i, mark := range marks {
			found[i] = found[i] || bytes.Contains(data, mark)
		}
		switch err {
		case nil:
			have = copy(buf, data[len(data)-keep:])
		case io.EOF, io.ErrUnexpectedEOF:
			return found, nil
		default:
			return found, err
		}
	}
	return found, nil
}

// refusals are words by which a shim says that it does not understand its
// stdin, in lower case, by the protocol that was tried.
var refusals = map[StartProtocol][]string{
	ProtocolLegacy: {
		"deprecated api",       // pkg/shim of containerd 2.4
		"bootstrap parameters", // the same
		"bootstrapparams",
		"bootstrap protocol",
	},
	ProtocolBootstrap: {
		"type with url", // typeurl, in shims of containerd 1.6: an id taken for a type
		"unexpectedeof", // rust-protobuf: a namespace taken for options
		"wireerror",
		"wire-format",                       // protobuf-go
		"failed to decode protobuf message", // prost
	},
}

// refused reports whether a helper that exited with an error did so because it
// did not understand the protocol p, and so whether trying the other one makes
// sense. Anything else that a shim says is the reason of the failure, which a
// second try would only hide. Silence counts only where the binary itself
// decided nothing (silent).
func refused(p StartProtocol, said string, silent bool) bool {
	said = strings.ToLower(strings.TrimSpace(said))
	if said == "" {
		return silent
	}
	for _, words := range refusals[p] {
		if strings.Contains(said, words) {
			return true
		}
	}
	return false
}
