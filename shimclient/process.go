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

// TokenEnv is the environment variable that carries the token of a launch, unless the launch is named: NamedToken. The
// shim's processes inherit it, and containers do not: their environment is that of their spec.
const TokenEnv = "SHIMYARD_LAUNCH"

// serviceName is what containerd's runc shim puts into the environment of its server, followed by the id that it was
// started under, and with that into the environment of all that it runs: its name in traces.
const serviceName = "OTEL_SERVICE_NAME=containerd-shim-"

// NewToken makes the token of one launch. It ends with the moment at which it was
// made: what began before cannot carry it, and need not be looked at.
func NewToken() string {
	b := make([]byte, 16)
	rand.Read(b) //nolint:errcheck // it never fails
	return hex.EncodeToString(b) + tokenMoment + strconv.FormatUint(Now(), 16)
}

// NamedToken is the token of a launch under an id that no other launch has had or will have, of a shim whose binary
// gives the id to all that it runs (Launcher.PassesOnID). Such a launch carries no variable: it is found by what any
// daemon's shim has, the id on its command line and in the name that it has in traces. The id must have no "-".
func NamedToken(id string) string {
	return namedToken + id + tokenMoment + strconv.FormatUint(Now(), 16)
}

const (
	// tokenMoment comes before the moment in a token.
	tokenMoment = "-"
	// namedToken begins that of a named launch.
	namedToken = "id:"
)

// launchName is the id of a named launch; "" for one whose token is in TokenEnv.
func launchName(token string) string {
	rest, named := strings.CutPrefix(token, namedToken)
	if !named {
		return ""
	}
	id, _, _ := strings.Cut(rest, tokenMoment)
	return id
}

// CarrierEnv is the entry of the environment that all that a launch's shim runs has, and by which it is found.
func CarrierEnv(token string) string {
	if name := launchName(token); name != "" {
		return serviceName + name
	}
	return TokenEnv + "=" + token
}

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
	short := strings.HasPrefix(token, namedToken) && len(launchName(token)) < 8
	if len(token) < 8 || short || strings.ContainsAny(token, "=\x00\n") {
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
