// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/proto"
)

// quotedReply is how much of a bad reply an error shows.
const quotedReply = 256

// ParseReply reads what a shim wrote to stdout in answer to `start`.
//
// Three forms exist, told apart by their bytes: text that begins with { is
// JSON; other text without control characters is a bare address (version 2,
// ttrpc); the rest is a BootstrapResult in protobuf, whose tags are control
// characters. A result has an address, a known protocol in lower case and a
// version that we speak; fields that we do not know are dropped.
//
// Errors: InvalidArgument, naming what is wrong; NotImplemented for a version
// above 3.
func ParseReply(stdout []byte) (*bootapi.BootstrapResult, error) {
	text := bytes.TrimSpace(stdout)
	var (
		result *bootapi.BootstrapResult
		err    error
	)
	switch {
	case len(text) == 0:
		return nil, errors.Wrap(errdefs.ErrInvalidArgument, "shim answered nothing on stdout: no address to connect to")
	case text[0] == '{':
		result, err = parseJSONReply(text)
	case isText(text):
		result, err = parseBareReply(text)
	default:
		result, err = parseProtobufReply(stdout)
	}
	if err != nil {
		return nil, err
	}
	if err := checkReply(result); err != nil {
		return nil, errors.Wrapf(err, "cannot use the shim's reply %s", quoteReply(stdout))
	}
	return result, nil
}

func parseJSONReply(text []byte) (*bootapi.BootstrapResult, error) {
	result := &bootapi.BootstrapResult{}
	if err := json.Unmarshal(text, result); err != nil {
		return nil, errors.Wrapf(errdefs.ErrInvalidArgument, "shim's reply %s is no JSON of a bootstrap result: %v",
			quoteReply(text), err)
	}
	for _, ext := range result.Extensions {
		if ext == nil {
			return nil, errors.Wrapf(errdefs.ErrInvalidArgument, "shim's reply %s has an extension that is null",
				quoteReply(text))
		}
	}
	return result, nil
}

func parseProtobufReply(data []byte) (*bootapi.BootstrapResult, error) {
	result := &bootapi.BootstrapResult{}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, result); err != nil {
		return nil, errors.Wrapf(errdefs.ErrInvalidArgument,
			"shim's reply %s is neither protobuf nor JSON nor an address: %v", quoteReply(data), err)
	}
	return result, nil
}

// parseBareReply takes what shims before containerd 1.7 print.
func parseBareReply(text []byte) (*bootapi.BootstrapResult, error) {
	address := string(text)
	if !looksLikeAddress(address) {
		return nil, errors.Wrapf(errdefs.ErrInvalidArgument, "shim's reply %s is not an address", quoteReply(text))
	}
	return &bootapi.BootstrapResult{Version: 2, Address: address, Protocol: "ttrpc"}, nil
}

// looksLikeAddress keeps a warning or an error on stdout from being dialled as
// if it were the name of an abstract socket.
func looksLikeAddress(s string) bool {
	if strings.ContainsAny(s, " \t\r\n") {
		return false
	}
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		return scheme != "" && rest != ""
	}
	return len(s) > 1 && (strings.Contains(s, "/") || s[0] == '@' || strings.HasPrefix(s, `\\.\pipe\`))
}

// checkReply completes the rules on a reply, and puts its protocol in lower case.
func checkReply(r *bootapi.BootstrapResult) error {
	r.Protocol = strings.ToLower(r.Protocol)
	switch {
	case r.Address == "":
		return errors.Wrap(errdefs.ErrInvalidArgument, "it has no address")
	case r.Protocol == "":
		return errors.Wrap(errdefs.ErrInvalidArgument, "it has no protocol")
	case r.Protocol != "ttrpc" && r.Protocol != "grpc":
		return errors.Wrapf(errdefs.ErrInvalidArgument, "its protocol is %q, neither ttrpc nor grpc", r.Protocol)
	case r.Version < minVersion:
		return errors.Wrapf(errdefs.ErrInvalidArgument, "its version is %d, less than %d, or missing", r.Version,
			minVersion)
	case r.Version > maxVersion:
		return errors.Wrapf(errdefs.ErrNotImplemented, "its version is %d, and %d is the newest known", r.Version,
			maxVersion)
	}
	_, err := EndpointOf(r)
	return err
}

// isText reports whether b could be written by a person: UTF-8 without control
// characters other than white space.
func isText(b []byte) bool {
	return utf8.Valid(b) && bytes.IndexFunc(b, func(r rune) bool {
		return isControl(r) && r != '\t' && r != '\n' && r != '\r'
	}) < 0
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

func quoteReply(b []byte) string {
	cut := ""
	if len(b) > quotedReply {
		b, cut = b[:quotedReply], "…"
	}
	return strconv.Quote(string(b)) + cut
}
