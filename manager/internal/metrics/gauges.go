// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// namespaceLimit is how many namespaces are told apart; the instances of others are counted under OtherNamespaces.
const namespaceLimit = 64

// instanceSeries is how many series those namespaces may have together, by kind, state and runtime: fewer namespaces are
// told apart where each has many.
const instanceSeries = 200

// OtherNamespaces is the label of namespaces beyond namespaceLimit.
const OtherNamespaces = "other"

// Now is what there is at one moment.
type Now struct {
	Instances map[Instances]int
	Processes map[Processes]int
	WarmShims map[WarmShims]int
	// UnresponsiveSince is when the shim that has not answered for the longest time fell silent; zero when all answer.
	UnresponsiveSince time.Time
	// LaunchQueue is how many launches wait for their turn.
	LaunchQueue int
	// CleanupsPending are instances whose cleaning has failed and is tried again, CleanupSince is when the oldest of
	// them began.
	CleanupsPending int
	CleanupSince    time.Time
}

// Instances, Processes and WarmShims are what is counted together.
type (
	Instances struct{ Kind, State, Runtime, Namespace string }
	Processes struct{ State, Runtime string }
	WarmShims struct{ Runtime, State string }
)

// Source tells what there is. It walks maps in memory: no call to a shim, no exec, no file. Runtimes are as their
// creates named them.
type Source interface{ Now() Now }

// Follow makes a source the one that gauges are read from, in place of an earlier one. Unfollow ends that, if it still
// is the one.
func Follow(s Source) { gauges.source.Store(&s) }

// Unfollow ends what Follow began.
func Unfollow(s Source) {
	if p := gauges.source.Load(); p != nil && *p == s {
		gauges.source.CompareAndSwap(p, nil)
	}
}

// collector reads the gauges at each scrape.
type collector struct {
	source atomic.Pointer[Source]
}

var gauges = &collector{}

var (
	instancesDesc = desc("instances", "Tasks and sandboxes.", "kind", "state", "runtime", "namespace")
	processesDesc = desc("processes", "Shim processes.", "state", "runtime")
	warmDesc      = desc("warm_shims", "Shims that were started for no container in particular.", "runtime", "state")
	oldestDesc    = desc("unresponsive_oldest_seconds",
		"For how long the shim that has been silent longest has not answered; 0 when all answer.")
	queueDesc   = desc("launch_queue", "Launches of shims that wait for their turn.")
	pendingDesc = desc("cleanups_pending", "Instances of which something could not be removed; it is tried again.")
	cleanupDesc = desc("cleanup_oldest_seconds",
		"For how long the oldest of the pending cleanups has failed; 0 when there is none.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prefix+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{instancesDesc, processesDesc, warmDesc, oldestDesc, queueDesc, pendingDesc,
		cleanupDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.source.Load()
	if s == nil {
		return
	}
	now := (*s).Now()
	send := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for k, n := range bounded(now.Instances) {
		send(instancesDesc, float64(n), k.Kind, k.State, k.Runtime, k.Namespace)
	}
	processes := make(map[Processes]int)
	for k, n := range now.Processes {
		processes[Processes{k.State, Runtime(k.Runtime)}] += n
	}
	for k, n := range processes {
		send(processesDesc, float64(n), k.State, k.Runtime)
	}
	warm := make(map[WarmShims]int)
	for k, n := range now.WarmShims {
		warm[WarmShims{Runtime(k.Runtime), k.State}] += n
	}
	for k, n := range warm {
		send(warmDesc, float64(n), k.Runtime, k.State)
	}
	send(oldestDesc, ageOf(now.UnresponsiveSince))
	send(queueDesc, float64(now.LaunchQueue))
	send(pendingDesc, float64(now.CleanupsPending))
	send(cleanupDesc, ageOf(now.CleanupSince))
}

func ageOf(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return max(0, time.Since(t).Seconds())
}

// bounded gives runtimes their label and puts together the namespaces that are beyond the limits: those with the fewest
// instances.
func bounded(all map[Instances]int) map[Instances]int {
	sizes, labelled := make(map[string]int), make(map[Instances]int, len(all))
	of := make(map[string]int) // how many series a namespace has
	for k, n := range all {
		sizes[k.Namespace] += n
		k.Runtime = Runtime(k.Runtime)
		if labelled[k] == 0 {
			of[k.Namespace]++
		}
		labelled[k] += n
	}
	kept := largest(sizes, of)
	out := make(map[Instances]int, len(labelled))
	for k, n := range labelled {
		if !kept[k.Namespace] {
			k.Namespace = OtherNamespaces
		}
		out[k] += n
	}
	return out
}

// largest are the names of the namespaces with the most instances, as many as the limits allow, all if they allow all.
func largest(sizes, series map[string]int) map[string]bool {
	names := slices.SortedFunc(maps.Keys(sizes), func(a, b string) int {
		return cmp.Or(cmp.Compare(sizes[b], sizes[a]), cmp.Compare(a, b))
	})
	kept, left := make(map[string]bool), instanceSeries
	for _, name := range names[:min(namespaceLimit-1, len(names))] {
		if left -= series[name]; left < 0 {
			break
		}
		kept[name] = true
	}
	return kept
}
