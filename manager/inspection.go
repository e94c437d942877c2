// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pkg/errors"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/inspect"
	"github.com/shimyard/shimyard/manager/internal/life"
	"github.com/shimyard/shimyard/manager/internal/metrics"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// dumpPatience is how long a shim may take to write its stacks when a client asks for them.
const dumpPatience = 2 * time.Second

// inspect answers the questions of package inspect. known is false for any other request. Nothing is sent to a shim but
// the signal of a dump, so that the answers come at once however many shims are silent.
func (m *ShimManager) inspect(ctx context.Context, request any) (answer any, known bool, err error) {
	switch q := request.(type) {
	case *inspect.ListRequest:
		return m.inspectAll(q), true, nil
	case *inspect.InspectRequest:
		answer, err = m.inspectOne(q)
	case *inspect.DumpRequest:
		answer, err = m.dump(ctx, q)
	case *inspect.LogsRequest:
		answer, err = m.logs(q)
	default:
		return nil, false, nil
	}
	return answer, true, err
}

func (m *ShimManager) inspectAll(q *inspect.ListRequest) *inspect.ListResponse {
	r := &inspect.ListResponse{Version: inspect.Version}
	for _, i := range m.everyInstance(q.Namespace) {
		i.read()
		if v := i.view(q.Processes); v.State != "" {
			r.Instances = append(r.Instances, v)
		}
	}
	slices.SortFunc(r.Instances, func(a, b inspect.Instance) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.ID, b.ID))
	})
	return r
}

// everyInstance is list without regard to kind or state.
func (m *ShimManager) everyInstance(namespace string) []*Instance {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*Instance, 0, len(m.instances))
	for k, i := range m.instances {
		if namespace == "" || k.namespace == namespace {
			all = append(all, i)
		}
	}
	return all
}

// inspected finds the instance that a question is about, in whatever state it is.
func (m *ShimManager) inspected(namespace, id string) (*Instance, error) {
	i := m.find(namespace, id)
	if i == nil {
		return nil, errors.Wrapf(errdefs.ErrNotFound, "no task or sandbox %s in namespace %s", id, namespace)
	}
	i.read()
	return i, nil
}

// view is the instance as a client sees it; State is "" for one that is gone.
func (i *Instance) view(processes bool) inspect.Instance {
	p := i.process()
	i.mu.Lock()
	way := i.ledger.Passage()
	v := inspect.Instance{
		Namespace: i.namespace, ID: i.id, Kind: string(i.kind), State: stateName(i.state), Since: i.since.UTC(),
		Created: way.Begun, Runtime: way.Runtime, Source: way.Source(), API: i.version,
	}
	if at, left := i.remains.WhatIsLeft(); left != nil {
		v.LastError, v.LastErrorAt = left.Error(), at
	}
	i.mu.Unlock()
	init, shim := i.ledger.Init(), way.Shim
	if p != nil {
		describe(p, &v)
		if pid := p.Verified(); pid != (shimclient.ProcessID{}) {
			shim = pid
		}
	}
	v.Shim, v.Init = processView(shim, processes), processView(init, processes)
	return v
}

// stateName is a state of an instance whose shim answers, as a client sees it; the others are the process's. "" is that
// of one that is gone.
func stateName(st life.State) string {
	switch st {
	case life.Launching:
		return inspect.StateLaunching
	case life.Restoring:
		return inspect.StateRestoring
	case life.Running:
		return inspect.StateRunning
	case life.Deleting:
		return inspect.StateDeleting
	case life.Reaping:
		return inspect.StateCleaning
	case life.Dead:
		return inspect.StateDead
	}
	return ""
}

// describe adds what is known of the way to the shim.
func describe(p *shimproc.Process, v *inspect.Instance) {
	st := p.Status()
	v.Address, v.Tasks, v.API = st.Address, st.Members, st.Version
	if v.LastError == "" && st.Failure != nil {
		v.LastError, v.LastErrorAt = st.Failure.Error(), st.FailedAt
	}
	v.State, v.Since = stateWith(v.State, v.Since, st)
}

// stateWith is the state of an instance as a client and the metrics see it, given what is known of its shim.
func stateWith(state string, since time.Time, p shimproc.Status) (string, time.Time) {
	if state != inspect.StateRunning && state != inspect.StateRestoring {
		return state, since
	}
	switch {
	case p.State == shimproc.Unresponsive && p.Linked:
		return inspect.StateUnresponsive, p.Since.UTC()
	case (p.State == shimproc.Connecting || p.State == shimproc.Unresponsive) && state == inspect.StateRunning:
		return inspect.StateReconnecting, p.Since.UTC()
	}
	return state, since
}

// processView is what is told of a process that is known to be this one; nil for none.
func processView(id shimclient.ProcessID, closely bool) *inspect.Process {
	if (id == shimclient.ProcessID{}) {
		return nil
	}
	v := &inspect.Process{Pid: id.Pid}
	if !closely {
		return v
	}
	u, err := id.Usage()
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		v.State, v.RSS, v.CPU, v.Deleted = u.State, u.RSS, uint64(u.CPU), u.Deleted
	}
	return v
}

func (m *ShimManager) inspectOne(q *inspect.InspectRequest) (*inspect.InspectResponse, error) {
	i, err := m.inspected(q.Namespace, q.ID)
	if err != nil {
		return nil, err
	}
	r := &inspect.InspectResponse{Version: inspect.Version, Instance: i.view(true)}
	if p := i.process(); p != nil {
		st := p.Status()
		r.Connection, r.ConnectionSince = st.State.String(), st.Since.UTC()
		for _, o := range instancesOf(p) {
			r.Members = append(r.Members, o.namespace+"/"+o.id)
		}
		slices.Sort(r.Members)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.bundle != nil {
		r.Bundle = i.bundle.Path
	}
	r.Binary, r.Warm = i.binary.Path, i.ledger.Passage().Warm
	rec := i.ledger.Record()
	if rec.Task != nil {
		r.Status, r.Exit = rec.Task.Status, exitView(rec.Task.Exit)
	}
	for id, x := range rec.Execs {
		r.Execs = append(r.Execs, inspect.Exec{ID: id, Pid: x.Pid, Exit: exitView(x.Exit)})
	}
	slices.SortFunc(r.Execs, func(a, b inspect.Exec) int { return cmp.Compare(a.ID, b.ID) })
	return r, nil
}

func exitView(e *bundle.Exit) *inspect.Exit {
	if e == nil {
		return nil
	}
	return &inspect.Exit{Pid: e.Pid, Status: e.Status, At: e.At, Told: e.Told}
}

// shimLog is the log of the instance's shim, with the shim's verified pid.
func (m *ShimManager) shimLog(namespace, id string) (*shimclient.Log, shimclient.ProcessID, error) {
	i, err := m.inspected(namespace, id)
	if err != nil {
		return nil, shimclient.ProcessID{}, err
	}
	p := i.process()
	if p == nil {
		return nil, shimclient.ProcessID{}, errors.Wrapf(errdefs.ErrFailedPrecondition, "%s %s has no shim", i.kind,
			i.id)
	}
	logs := p.Log()
	if logs == nil {
		err = errors.Wrapf(errdefs.ErrFailedPrecondition, "the log of the shim of %s %s is not open", i.kind, i.id)
	}
	return logs, p.Verified(), err
}

// dump makes the shim of an instance write its stacks.
func (m *ShimManager) dump(ctx context.Context, q *inspect.DumpRequest) (*inspect.DumpResponse, error) {
	logs, pid, err := m.shimLog(q.Namespace, q.ID)
	if err != nil {
		return nil, err
	}
	if (pid == shimclient.ProcessID{}) {
		return nil, errors.Wrapf(errdefs.ErrFailedPrecondition,
			"the pid of the shim of %s is not verified, so it gets no signal", q.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, dumpPatience)
	defer cancel()
	text, err := logs.DumpStacks(ctx, pid.DumpStacks)
	if err != nil {
		return nil, errors.Wrapf(err, "cannot get the stacks of the shim of %s (pid %d)", q.ID, pid.Pid)
	}
	return &inspect.DumpResponse{Version: inspect.Version, Pid: pid.Pid, Text: text}, nil
}

func (m *ShimManager) logs(q *inspect.LogsRequest) (*inspect.LogsResponse, error) {
	logs, _, err := m.shimLog(q.Namespace, q.ID)
	if err != nil {
		return nil, err
	}
	lines, last := logs.Lines(q.After)
	if q.Tail > 0 && len(lines) > q.Tail {
		lines = lines[len(lines)-q.Tail:]
	}
	r := &inspect.LogsResponse{Version: inspect.Version, Last: last}
	for _, l := range lines {
		r.Lines = append(r.Lines, inspect.LogLine{Number: l.Number, At: l.At, Text: l.Text})
	}
	return r, nil
}

// RegisterMetrics registers the metrics of this package with Prometheus. Those that are registered already stay.
func RegisterMetrics(r prometheus.Registerer, version, containerdVersion string) error {
	return metrics.Register(r, version, containerdVersion)
}

// Now counts what there is, for the metrics. It asks no shim and reads no file.
func (m *ShimManager) Now() metrics.Now {
	now := metrics.Now{
		Instances: make(map[metrics.Instances]int), Processes: make(map[metrics.Processes]int),
		WarmShims: make(map[metrics.WarmShims]int), LaunchQueue: m.launcher.Waiting(),
	}
	of := make(map[*shimproc.Process]shimproc.Status)
	for _, p := range m.procs.All() {
		st := p.Status()
		of[p] = st
		now.Processes[metrics.Processes{State: st.State.String(), Runtime: st.Runtime}]++
		if w := warmth(p); w != nil {
			now.WarmShims[metrics.WarmShims{Runtime: w.Runtime(), State: m.pool.account.StateOf(w.entry).String()}]++
		}
		if st.State == shimproc.Unresponsive {
			now.UnresponsiveSince = earlier(now.UnresponsiveSince, st.Since)
		}
	}
	for _, i := range m.everyInstance("") {
		v := i.brief(of)
		if v.State == "" {
			continue
		}
		now.Instances[v.Instances]++
		if v.failing {
			now.CleanupsPending++
			now.CleanupSince = earlier(now.CleanupSince, v.since)
		}
	}
	return now
}

// earlier of two times, of which the zero one is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// brief is what is counted of an instance.
type brief struct {
	metrics.Instances
	failing bool      // it is being cleaned up, and that has failed
	since   time.Time // when its state began
}

// brief takes what is known of the instance's process from known, if it is there.
func (i *Instance) brief(known map[*shimproc.Process]shimproc.Status) brief {
	i.mu.Lock()
	_, left := i.remains.WhatIsLeft()
	b := brief{
		Instances: metrics.Instances{
			Kind: string(i.kind), State: stateName(i.state), Runtime: i.ledger.Passage().Runtime,
			Namespace: i.namespace,
		},
		failing: left != nil && i.state.IsEnding(), since: i.since,
	}
	p := i.proc
	i.mu.Unlock()
	if p == nil {
		return b
	}
	st, ok := known[p]
	if !ok { // it came since, or is over
		st = p.Status()
	}
	b.State, _ = stateWith(b.State, b.since, st)
	return b
}
