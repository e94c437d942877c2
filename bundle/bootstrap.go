// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode"
	"unicode/utf8"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

const (
	// legacyVersion and legacyProtocol are what an address alone stands for.
	legacyVersion  = 2
	legacyProtocol = "ttrpc"

	maxAddress = 4096
)

// WriteBootstrap records how to reach the shim, in the form that containerd's own runtime writes and reads. Errors:
// InvalidArgument when that could not be read back (no address, a version below 2).
func (b *Bundle) WriteBootstrap(r *bootapi.BootstrapResult) error {
	if err := checkBootstrap(r); err != nil {
		return errors.Wrapf(errdefs.ErrInvalidArgument, "cannot record how to reach the shim of %s: %v", b.Path, err)
	}
	// Not protojson: the other readers of this file know encoding/json's form.
	data, err := json.Marshal(r)
	if err != nil {
		return errors.Wrapf(err, "cannot record how to reach the shim of %s", b.Path)
	}
	return writeFile(b.file(bootstrapFile), data, 0o644)
}

// ReadBootstrap returns how to reach the shim: from bootstrap.json, which holds the whole reply or, from some older
// daemons, an address alone; else from the file with the address that shims before containerd 1.7 leave. An address
// alone stands for version 2 over ttrpc. It does not judge what it read, beyond that there is an address and a version
// of 2 or above. Errors: NotFound when there is neither; ErrForeign.
func (b *Bundle) ReadBootstrap() (*bootapi.BootstrapResult, error) {
	path := b.file(bootstrapFile)
	data, err := readFile(path)
	if errdefs.IsNotFound(err) {
		address, err := b.LegacyAddress()
		if errdefs.IsNotFound(err) {
			return nil, errors.Wrapf(errdefs.ErrNotFound, "%s (nor is there an %s file)", path, addressFile)
		}
		if err != nil {
			return nil, err
		}
		return legacyBootstrap(address), nil
	}
	if err != nil {
		return nil, err
	}
	r, err := parseBootstrap(data)
	if err != nil {
		return nil, errors.Wrapf(ErrForeign, "cannot use %s: %v", path, err)
	}
	return r, nil
}

// LegacyAddress returns the address that the shim wrote into the bundle by itself. Errors: NotFound; ErrForeign.
func (b *Bundle) LegacyAddress() (string, error) {
	path := b.file(addressFile)
	data, err := readFile(path)
	if err != nil {
		return "", err
	}
	address, err := parseAddress(data)
	if err != nil {
		return "", errors.Wrapf(ErrForeign, "cannot use %s: %v", path, err)
	}
	return address, nil
}

func legacyBootstrap(address string) *bootapi.BootstrapResult {
	return &bootapi.BootstrapResult{Version: legacyVersion, Address: address, Protocol: legacyProtocol}
}

// parseBootstrap reads the content of bootstrap.json.
func parseBootstrap(data []byte) (*bootapi.BootstrapResult, error) {
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return nil, errors.New("it is empty")
	}
	if data[0] != '{' {
		address, err := parseAddress(data)
		if err != nil {
			return nil, err
		}
		return legacyBootstrap(address), nil
	}
	// A field that we do not know is not an error: a newer containerd may have written it.
	r := &bootapi.BootstrapResult{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, errors.Wrap(err, "damaged JSON")
	}
	if err := checkBootstrap(r); err != nil {
		return nil, err
	}
	return r, nil
}

func checkBootstrap(r *bootapi.BootstrapResult) error {
	if r == nil {
		return errors.New("there is nothing")
	}
	if r.Version < legacyVersion {
		return errors.Errorf("version %d, want %d or above", r.Version, legacyVersion)
	}
	return checkAddress(r.Address)
}

// parseAddress reads an address that stands alone.
func parseAddress(data []byte) (string, error) {
	address := string(bytes.TrimSpace(data))
	if strings.HasPrefix(address, "{") {
		return "", errors.New("JSON instead of an address")
	}
	return address, checkAddress(address)
}

// checkAddress tells an address from damaged or foreign content; whether it can be dialled is not judged here.
func checkAddress(address string) error {
	if address == "" {
		return errors.New("no address")
	}
	if len(address) > maxAddress {
		return errors.Errorf("an address of %d bytes, want at most %d", len(address), maxAddress)
	}
	// An abstract socket's address may start with a NUL; spaces are allowed in paths; other control characters, line
	// ends and blocks of zeroes are damage.
	name := strings.TrimPrefix(address, "\x00")
	if name == "" || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return errors.Errorf("%q is not an address", shorten(address))
	}
	return nil
}
