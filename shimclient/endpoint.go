// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unicode"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

const (
	protocolTTRPC = "ttrpc"
	protocolGRPC  = "grpc"

	// The versions of the Task API that a shim may speak.
	minVersion = 2
	maxVersion = 3
)

// Endpoint is where and how one shim process serves the Task API. Endpoints are
// comparable: equal ones are the same process. The address is kept as the shim
// spelled it.
type Endpoint struct {
	// Protocol is "ttrpc" or "grpc".
	Protocol string
	// Address is one of
	//   unix:///path          a socket file
	//   unix://@name          an abstract socket ("@" may be a NUL byte)
	//   vsock://CID:PORT      a VM socket (Linux)
	//   hvsock:///path:PORT   a port of a VM behind its monitor's socket file
	//   npipe:////./pipe/name a named pipe (Windows), or that without the scheme
	// or has no scheme. Over gRPC that is a socket file. Over ttrpc it is the
	// name of an abstract socket, as containerd takes it; an absolute path at
	// which there is a socket is that file.
	Address string
	// Version is that of the Task API: 2 or 3.
	Version int
}

// EndpointOf returns the endpoint that a shim's reply names. What is missing or
// malformed is InvalidArgument, a version newer than we know NotImplemented.
func EndpointOf(r *bootapi.BootstrapResult) (Endpoint, error) {
	return newEndpoint(r.GetProtocol(), r.GetAddress(), int64(r.GetVersion()))
}

// ParseEndpoint parses the form in which sandbox controllers hand an endpoint
// on: the protocol, a "+", and the address ("ttrpc+unix:///run/…"). Errors are
// those of EndpointOf.
func ParseEndpoint(address string, version uint32) (Endpoint, error) {
	protocol, address, ok := strings.Cut(address, "+")
	if !ok {
		return Endpoint{}, errors.Wrapf(errdefs.ErrInvalidArgument,
			"cannot use shim address %q: want ttrpc+ or grpc+ before it", protocol)
	}
	return newEndpoint(protocol, address, int64(version))
}

func newEndpoint(protocol, address string, version int64) (Endpoint, error) {
	e := Endpoint{Protocol: strings.ToLower(protocol), Address: address, Version: int(version)}
	if e.Protocol != protocolTTRPC && e.Protocol != protocolGRPC {
		return Endpoint{}, errors.Wrapf(errdefs.ErrInvalidArgument,
			"cannot use shim at %q: protocol %q is neither ttrpc nor grpc", address, protocol)
	}
	if version < minVersion {
		return Endpoint{}, errors.Wrapf(errdefs.ErrInvalidArgument,
			"cannot use shim at %q: version %d of the task API, want %d to %d", address, version, minVersion,
			maxVersion)
	}
	if version > maxVersion {
		return Endpoint{}, errors.Wrapf(errdefs.ErrNotImplemented,
			"cannot use shim at %q: version %d of the task API, want %d to %d", address, version, minVersion,
			maxVersion)
	}
	if _, err := e.target(); err != nil {
		return Endpoint{}, err
	}
	return e, nil
}

// String returns the form that ParseEndpoint reads.
func (e Endpoint) String() string { return e.Protocol + "+" + e.Address }

// Local reports whether the endpoint is a unix socket with a path, so that the
// pid which the shim gives for itself is one of ours. A socket file that leads
// into a VM (hvsock) is not, nor is an abstract socket.
func (e Endpoint) Local() bool {
	t, err := e.target()
	return err == nil && t.kind == kindUnix && !isAbstract(t.unixPath())
}

// Unix reports whether the endpoint is a unix socket of this machine, with a path
// or abstract: its peer runs here, and a refused connect means no listener.
func (e Endpoint) Unix() bool {
	t, err := e.target()
	return err == nil && t.kind == kindUnix
}

type targetKind int

const (
	kindUnix targetKind = iota
	kindVsock
	kindHybridVsock
	kindPipe
)

// target is what an address means.
type target struct {
	kind      targetKind
	path      string // of the socket or pipe
	bareTTRPC bool   // path came without a scheme, for ttrpc
	cid, port uint32
}

// target parses the address.
func (e Endpoint) target() (target, error) {
	t, problem := parseTarget(e.Address, e.Protocol == protocolTTRPC)
	if problem != "" {
		return target{}, errors.Wrapf(errdefs.ErrInvalidArgument, "cannot use shim address %q: %s", e.Address, problem)
	}
	return t, nil
}

// parseTarget returns the target and what is wrong with the address, if
// anything is.
func parseTarget(address string, ttrpc bool) (t target, problem string) {
	if address == "" {
		return t, "it is empty"
	}
	// A leading NUL is an abstract socket's; anything else unprintable is output
	// that was not meant to be an address.
	if strings.ContainsFunc(strings.TrimPrefix(afterScheme(address), "\x00"), unicode.IsControl) {
		return t, "it contains control characters"
	}
	if runtime.GOOS == "windows" {
		if pipe := strings.TrimPrefix(filepath.ToSlash(address), "npipe://"); strings.HasPrefix(pipe, "//") {
			return target{kind: kindPipe, path: pipe}, ""
		}
	}
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok {
		return parseBare(address, ttrpc)
	}
	switch scheme {
	case "unix":
		return target{kind: kindUnix, path: rest}, checkSocketPath(rest)
	case "vsock":
		cid, port, _ := strings.Cut(rest, ":")
		c, cerr := strconv.ParseUint(cid, 10, 32)
		p, perr := strconv.ParseUint(port, 10, 32)
		if cerr != nil || perr != nil {
			return t, "want vsock://CID:PORT"
		}
		return target{kind: kindVsock, cid: uint32(c), port: uint32(p)}, ""
	case "hvsock":
		colon := strings.LastIndexByte(rest, ':')
		if colon < 0 {
			return t, "want hvsock://PATH:PORT"
		}
		p, err := strconv.ParseUint(rest[colon+1:], 10, 32)
		if err != nil {
			return t, "want hvsock://PATH:PORT"
		}
		return target{kind: kindHybridVsock, path: rest[:colon], port: uint32(p)}, checkSocketPath(rest[:colon])
	default:
		return t, "scheme " + strconv.Quote(scheme) + " is not supported"
	}
}

func afterScheme(address string) string {
	if _, rest, ok := strings.Cut(address, "://"); ok {
		return rest
	}
	return address
}

func parseBare(address string, ttrpc bool) (target, string) {
	if !ttrpc {
		return target{kind: kindUnix, path: address}, checkSocketPath(address)
	}
	if address == "\x00" {
		return target{}, "the name is empty"
	}
	// No shim ever named its socket so, but many a warning looks like this.
	if strings.ContainsFunc(address, unicode.IsSpace) {
		return target{}, "it contains spaces"
	}
	return target{kind: kindUnix, path: address, bareTTRPC: true}, ""
}

func checkSocketPath(path string) string {
	switch {
	case path == "":
		return "the path is empty"
	case isAbstract(path):
		if len(path) == 1 {
			return "the name is empty"
		}
	case !filepath.IsAbs(path):
		return "the path is not absolute"
	}
	return ""
}

// isAbstract reports whether the net package takes the path of a unix socket
// for an abstract name.
func isAbstract(path string) bool { return path[0] == '@' || path[0] == 0 }

// pinAddress gives a bare path at which there is a socket file now the scheme of one.
// Were it kept as it is, it would be taken for the name of an abstract socket as soon
// as the file is gone, and any process can take such a name.
func pinAddress(r *bootapi.BootstrapResult) {
	if e, err := EndpointOf(r); err == nil {
		r.Address = e.pinned().Address
	}
}

// pinned is the endpoint with its address as pinAddress gives it.
func (e Endpoint) pinned() Endpoint {
	t, err := e.target()
	if err == nil && t.bareTTRPC && !isAbstract(t.unixPath()) {
		e.Address = "unix://" + t.path
	}
	return e
}

// unixPath returns the path to dial. A ttrpc address without a scheme is an
// abstract name to containerd; those of its early releases look like absolute
// paths, so that only the file system can tell.
func (t target) unixPath() string {
	if !t.bareTTRPC || t.path[0] == 0 {
		return t.path
	}
	if filepath.IsAbs(t.path) {
		if fi, err := os.Stat(t.path); err == nil && fi.Mode().Type() == os.ModeSocket {
			return t.path
		}
	}
	return "\x00" + t.path
}
