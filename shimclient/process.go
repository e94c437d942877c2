// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
)

// TokenEnv is the environment variable that carries the token of a launch. The
// shim's processes inherit it, and containers do not: their environment is that
// of their spec.
const TokenEnv = "SHIMYARD_LAUNCH"

// NewToken makes the token of one launch. It ends with the moment at which it was
// made: what began before cannot carry it, and need not be looked at.
func NewToken() string {
	b := make([]byte, 16)
	rand.Read(b) //nolint:errcheck // it never fails
	return hex.EncodeToString(b) + tokenMoment + strconv.FormatUint(Now(), 16)
}

// tokenMoment comes before the moment in a token.
const tokenMoment = "-"

// madeAt is the moment in a token; 0 for one without.
func madeAt(token string) uint64 {
	_, moment, _ := strings.Cut(token, tokenMoment)
	at, err := strconv.ParseUint(moment, 16, 64)
	if err != nil {
		return 0
	}
	return at
}

// checkToken keeps a token from matching more than one launch.
func checkToken(token string) error {
	if len(token) < 8 || strings.ContainsAny(token, "=\x00\n") {
		return errors.Wrapf(errdefs.ErrInvalidArgument, "%q is not the token of a launch", token)
	}
	return nil
}

// ProcessID names one process for as long as the system runs: the pid alone is
// used again. The zero value names none. Comparable.
type ProcessID struct {
	Pid int
	// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot.
	StartTime uint64
}
