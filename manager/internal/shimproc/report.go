// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimproc

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/pkg/errors"
	"google.golang.org/grpc/status"

	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/shimclient"
)

// namedInLog is how many instances a line of the log names; a shim may serve hundreds.
const namedInLog = 8

// logger is for lines that an operator acts on: they name the shim's address, its pid if that is verified, its runtime,
// and whom it serves.
func (p *Process) logger(ctx context.Context) *log.Entry {
	fields := log.Fields{"address": p.Endpoint}
	p.mu.Lock()
	if p.pid != (shimclient.ProcessID{}) {
		fields["pid"] = p.pid.Pid
	}
	served := make([]string, 0, len(p.behind))
	for m := range p.behind {
		f := m.Facts()
		served = append(served, f.Namespace+"/"+f.ID)
		if f.Binary.Runtime != "" {
			fields["runtime"] = f.Binary.Runtime
		}
	}
	p.mu.Unlock()
	slices.Sort(served)
	if more := len(served) - namedInLog; more > 0 {
		served = append(served[:namedInLog], fmt.Sprintf("and %d more", more))
	}
	if len(served) > 0 {
		fields["serves"] = served
	}
	return log.G(ctx).WithFields(fields)
}

// observe counts a call to a shim.
func observe(method string, err error, took time.Duration) {
	if strings.HasPrefix(method, "Wait") {
		return
	}
	if errors.Is(err, shimclient.ErrNoAnswer) {
		metrics.DeadlinePassed(method)
	}
	metrics.RPC(method, codeOf(err), took)
}

func codeOf(err error) string {
	if err == nil {
		return "OK"
	}
	return status.Code(errgrpc.ToGRPC(err)).String()
}
