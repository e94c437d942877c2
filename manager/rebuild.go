// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"maps"
	"slices"
	"strconv"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/shimyard/shimyard/bundle"
	"github.com/shimyard/shimyard/manager/internal/shimproc"
	"github.com/shimyard/shimyard/shimclient"
)

// findAddress puts one instance behind its shim's process, cleans it up if that is known to be dead, and else puts it
// behind a process that cannot be reached. It returns the process; nil when there is no task to restore.
func (m *ShimManager) findAddress(u unaddressed) *shimproc.Process {
	i, ctx := u.i, u.i.context()
	pid := i.ledger.Passage().Shim
	if i.ledger.Passage().EarlierBoot || pid != (shimclient.ProcessID{}) && !pid.Alive() {
		i.logger(ctx).WithError(u.why).Error("cannot tell how to reach the shim of a bundle, and it has ended")
		if i.onDeath() {
			m.onBegin(i.cleanUpDead)
		}
		return nil
	}
	if ep, ok := i.rebuiltAddress(); ok {
		from := shimproc.Origin{Launched: i.launchedHere(), Pid: pid, Answered: i.ledger.Passage().Answered(), Owned: true}
		if p, _, err := m.procs.Attach(behind{i}, ep, from); err == nil {
			i.logger(ctx).WithError(u.why).WithField("address", ep).
				Warn("cannot tell from a bundle how to reach its shim; found that by other traces")
			return p
		}
	}
	if !i.hasTraces() {
		i.logger(ctx).WithError(u.why).Info("cleaning up a create that was cut short")
		if i.onUnknown() {
			m.onBegin(i.undo)
		}
		return nil
	}
	return i.lose(u.why)
}

// hasTraces tells whether anything speaks for a container behind a bundle of stock containerd that does not say how to
// reach its shim: without, it is what is left of a create that was cut short. With a record of ours the record says
// that.
func (i *Instance) hasTraces() bool {
	return !i.foreign() || i.ledger.Pid("") != 0 || i.hasProcess()
}

// rebuiltAddress finds out where the instance's shim must listen, from the surest trace to a guess. The guess holds
// only if the process there says that it has the pid on record.
func (i *Instance) rebuiltAddress() (shimclient.Endpoint, bool) {
	for _, look := range []func() (shimclient.Endpoint, bool){i.addressOfKin, i.addressOfWarm, i.addressOfLeader} {
		if ep, ok := look(); ok {
			return ep, true
		}
	}
	ep, ok := i.addressByName()
	if ok {
		i.mu.Lock()
		i.guessed = true
		i.mu.Unlock()
	}
	return ep, ok
}

// addressOfKin is that of another instance which the same process serves, by its pid.
func (i *Instance) addressOfKin() (shimclient.Endpoint, bool) {
	pid := i.ledger.Passage().Shim
	if (pid == shimclient.ProcessID{}) {
		return shimclient.Endpoint{}, false
	}
	i.m.mu.Lock()
	all := slices.Collect(maps.Values(i.m.instances))
	i.m.mu.Unlock()
	for _, o := range all {
		if p := o.process(); o != i && o.ledger.Passage().Shim == pid && p != nil && p.LostAddress() == nil {
			return p.Endpoint, true
		}
	}
	return shimclient.Endpoint{}, false
}

// addressOfWarm is that in the directory of the warm shim that serves the instance.
func (i *Instance) addressOfWarm() (shimclient.Endpoint, bool) {
	id := i.ledger.Passage().Warm
	if id == "" {
		return shimclient.Endpoint{}, false
	}
	all, err := i.m.config.Tasks.layout().ListWarm()
	if err != nil {
		return shimclient.Endpoint{}, false
	}
	n := slices.IndexFunc(all, func(w *bundle.Warm) bool { return w.ID == id })
	if n < 0 {
		return shimclient.Endpoint{}, false
	}
	return endpointIn(all[n].ReadBootstrap())
}

// addressOfLeader is that of the sandbox which the instance has joined, or of the first of its group.
func (i *Instance) addressOfLeader() (shimclient.Endpoint, bool) {
	leader := i.leader()
	if leader == "" {
		return shimclient.Endpoint{}, false
	}
	o := i.m.find(i.namespace, leader)
	if o == nil {
		return shimclient.Endpoint{}, false
	}
	var none shimclient.ProcessID
	if mine, other := i.ledger.Passage().Shim, o.ledger.Passage().Shim; mine != other && mine != none && other != none {
		return shimclient.Endpoint{}, false
	}
	return endpointIn(o.bootstrap())
}

func endpointIn(r *bootapi.BootstrapResult, err error) (shimclient.Endpoint, bool) {
	if err != nil {
		return shimclient.Endpoint{}, false
	}
	ep, err := shimclient.EndpointOf(r)
	return ep.Followed(), err == nil
}

// addressByName is that of a socket that is listened on under a name that the shim's `start` gives for the id or
// its group. What is spoken there is what shims of today speak; a version that is too new is noticed by the first
// call.
func (i *Instance) addressByName() (shimclient.Endpoint, bool) {
	ids := []string{i.id}
	if leader := i.leader(); leader != "" {
		ids = append(ids, leader)
	}
	if launch := i.ledger.Passage().Launch; launch != nil {
		ids = append(ids, launch.Groups...)
	}
	for _, address := range i.m.launcher.SocketAddresses(i.namespace, ids) {
		ep, ok := endpointIn(&bootapi.BootstrapResult{Version: sandboxVersion, Protocol: "ttrpc", Address: address},
			nil)
		if !ok {
			continue
		}
		if shimproc.Probe(i.m.ctx, ep) == shimclient.Reachable {
			return ep, true
		}
	}
	return shimclient.Endpoint{}, false
}

// confirm holds an address, if it was guessed or the task is unknown there, against the record: the shim's pid or,
// where that is not, the container's, which a shim that does not know it is not in charge of. Errors: ErrStranger when
// it is another process; any other decides nothing.
func (i *Instance) confirm(ctx context.Context, known bool) error {
	i.mu.Lock()
	guessed := i.guessed
	i.mu.Unlock()
	want := i.ledger.Passage().Shim
	switch {
	// A shim that knows the task is the one. One that does not may be another, which has taken the name of a socket
	// that was removed.
	case !guessed && (known || !want.Alive()):
		return nil
	case want == (shimclient.ProcessID{}):
		if known || !i.ledger.InitMayLive() {
			return nil
		}
		return shimproc.ErrStranger
	}
	var r *taskapi.ConnectResponse
	err := i.call(ctx, shimproc.Repeatable, func(ctx context.Context, t *shimclient.Task) (err error) {
		r, err = t.Connect(ctx, &taskapi.ConnectRequest{ID: i.id})
		return err
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if !guessed && r.GetShimPid() == 0 {
		return nil // it does not tell pids, and the address is the recorded one
	}
	if int(r.GetShimPid()) != want.Pid {
		return shimproc.ErrStranger
	}
	return nil
}

// mendBootstrap writes down again how to reach the shim, for another containerd to find, once the shim has answered
// there.
func (i *Instance) mendBootstrap() {
	i.mu.Lock()
	mend, d, p := i.mend, i.bundle, i.proc
	i.mend = false
	i.mu.Unlock()
	if !mend || p == nil {
		return
	}
	ep := p.Endpoint
	r := &bootapi.BootstrapResult{Version: int32(p.TaskVersion()), Protocol: ep.Protocol, Address: ep.Address}
	if err := d.WriteBootstrap(r); err != nil {
		i.logger(i.context()).WithError(err).Warn("cannot write down again how to reach the shim")
	}
}

// A lost process is one that lives, as far as is known, and whose address is not known any more. It is like a process
// that does not answer, for ever: what is asked of it is answered from the record, or at once with an error that says
// why; calls to it go nowhere. The verdict on its death is by its pid, or by the traces of its launch.

// lose puts the instance behind a lost process, which is watched from now on. Instances with the same pid on record
// share one.
func (i *Instance) lose(why error) *shimproc.Process {
	i.logger(i.context()).WithError(why).Error("cannot tell how to reach the shim of a bundle, leaving both alone")
	pid := i.ledger.Passage().Shim
	name := i.namespace + "/" + i.id
	if pid != (shimclient.ProcessID{}) {
		name = "process " + strconv.Itoa(pid.Pid)
	}
	traced := !i.servedByAnother()
	launched := i.launchedHere()
	p := i.m.procs.AttachLost(behind{i}, name, why, traced, shimproc.Origin{Pid: pid, Launched: launched})
	i.announce() // what waits for the process that it had, or for it to have one, has another to look at
	return p
}

// loseStranger leaves a process that turned out not to be the instance's.
func (i *Instance) loseStranger(why error) {
	p := i.process()
	i.mu.Lock()
	i.guessed, i.mend = false, false
	i.mu.Unlock()
	if p.Remove(behind{i}) == 0 && p.Keeper() == nil {
		p.End()
	}
	i.lose(why)
}

// servedByAnother tells whether the shim was started for another instance, or for none: its launch is not traced in
// this one's bundle.
func (i *Instance) servedByAnother() bool {
	way := i.ledger.Passage()
	return way.Joined || way.Warm != "" || i.leader() != ""
}

// launchedHere tells whether a daemon of this machine started the shim: a sandbox that a proxy plugin's sandboxer owns
// has its shim wherever that one wants. Of a bundle that stock containerd left, only the lack of a sandbox tells.
func (i *Instance) launchedHere() bool {
	i.mu.Lock()
	way, d := i.ledger.Passage(), i.bundle
	i.mu.Unlock()
	launched := way.Launched || way.Launch != nil
	if launched || !i.foreign() {
		return launched
	}
	_, err := d.Sandbox()
	return err != nil
}

// foreign tells that no launch of ours is on record.
func (i *Instance) foreign() bool {
	way := i.ledger.Passage()
	return way.Launch == nil && !way.Joined
}

// leader is the id of the instance whose shim serves this one, as its bundle tells: the sandbox that it joined, or its
// group; "" where it is served by a shim of its own.
func (i *Instance) leader() string {
	i.mu.Lock()
	d, launch := i.bundle, i.ledger.Passage().Launch
	i.mu.Unlock()
	id, err := d.Sandbox()
	switch {
	case err == nil:
	case launch != nil && len(launch.Groups) > 0:
		id = launch.Groups[0]
	case launch == nil:
		id = groupOf(d)
	}
	if id == i.id {
		return ""
	}
	return id
}

// follows tells whether an instance that is there has the shim which serves this one.
func (i *Instance) follows() bool {
	id := i.leader()
	return id != "" && i.m.find(i.namespace, id) != nil
}

// groupOf reads the group of a bundle from its spec, as runc's shim does; "" where there is none.
func groupOf(d *bundle.Bundle) string {
	raw, err := d.Spec()
	if err != nil {
		return ""
	}
	facts, err := parseSpec(raw)
	if err != nil || len(facts.groups) == 0 {
		return ""
	}
	return facts.groups[0]
}

// openLog takes over the log of a restored shim. Only an instance that started its shim has one; in a pod that stock
// containerd left it is the pause container, whose bundle the shim was started in.
func (i *Instance) openLog() {
	i.mu.Lock()
	p, d, joined := i.proc, i.bundle, i.ledger.Passage().Joined
	i.mu.Unlock()
	if joined || p == nil || i.foreign() && i.follows() {
		return
	}
	c, err := shimclient.OpenLog(d.LogPath(), log.Fields{"id": i.id, "namespace": i.namespace})
	if err != nil {
		i.logger(i.context()).WithError(err).Warn("cannot open the log of a restored shim")
		return
	}
	p.SetLog(c)
}
