// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// call is a method with a code.
type call struct{ method, code string }

// handles are resolved once: a State takes less time than the look-up of its labels would be worth.
var handles struct {
	seconds, ended, passed sync.Map // by method, by call, by method
}

// RPC counts a call to a shim that has ended. method is that of the Task or Sandbox API, code gRPC's name of the
// error's class, "OK" for none; another code counts as Unknown. Waits are not counted: one lasts as long as its container.
func RPC(method, code string, took time.Duration) {
	observer(method).Observe(took.Seconds())
	ended(call{method, code}).Inc()
}

// DeadlinePassed counts a call whose method's own deadline has passed.
func DeadlinePassed(method string) {
	h, ok := handles.passed.Load(method)
	if !ok {
		h, _ = handles.passed.LoadOrStore(method, deadlines.WithLabelValues(method))
	}
	h.(prometheus.Counter).Inc()
}

func observer(method string) prometheus.Observer {
	h, ok := handles.seconds.Load(method)
	if !ok {
		h, _ = handles.seconds.LoadOrStore(method, rpcSeconds.WithLabelValues(method))
		deadlines.WithLabelValues(method) // it begins at zero
	}
	return h.(prometheus.Observer)
}

func ended(c call) prometheus.Counter {
	h, ok := handles.ended.Load(c)
	if !ok && !slices.Contains(codes, c.code) {
		return ended(call{c.method, codeUnknown})
	}
	if !ok {
		h, _ = handles.ended.LoadOrStore(c, rpcs.WithLabelValues(c.method, c.code))
	}
	return h.(prometheus.Counter)
}
