// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import "slices"

func (s *Scenario) generation() Generation {
	if s.Generation == "" {
		return Bootstrap
	}
	return s.Generation
}

func (s *Scenario) transport() string {
	if s.Transport == "" {
		return "ttrpc"
	}
	return s.Transport
}

func (s *Scenario) format() Format {
	if s.Reply.Format != "" {
		return s.Reply.Format
	}
	switch s.generation() {
	case Bootstrap:
		return Protobuf
	case Dropping:
		return JSON
	default:
		return Address
	}
}

func (s *Scenario) version() int32 {
	if s.Reply.Version != 0 {
		return s.Reply.Version
	}
	if s.format() == Address {
		return 2
	}
	return 3
}

func (s *Scenario) versions() []int {
	if s.Versions != nil {
		return s.Versions
	}
	return []int{int(s.version())}
}

func (s *Scenario) omits(field string) bool { return slices.Contains(s.Reply.Omit, field) }
