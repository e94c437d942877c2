// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	_ "github.com/containerd/containerd/api/types/runc/options"      // so that its messages are decoded in traces
	_ "github.com/containerd/containerd/api/types/runtimeoptions/v1" // likewise
	"github.com/pkg/errors"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// launch is one run of `start`.
type launch struct {
	*execution
	faults StartFaults // what of the scenario's faults befalls this run
	stdin  Entry       // what stdin held
	params *bootapi.BootstrapParams
	daemon *exec.Cmd
	socks  []*socket
}

func (x *execution) start() error {
	l := &launch{execution: x}
	fmt.Fprint(os.Stderr, x.scenario.Start.Stderr)
	entryFault := x.scenario.Start.Only == "" && l.any(AtEntry)
	if entryFault {
		l.draw()
		x.trace(Entry{Stdin: "unread"})
		if err := l.stage(AtEntry); err != nil {
			return err
		}
	}
	if err := l.readStdin(); err != nil {
		return err
	}
	if !entryFault {
		x.trace(l.stdin)
		l.draw()
	}
	return l.run()
}

func (l *launch) any(s Stage) bool {
	f := l.scenario.Start
	return f.HangAt == s || f.FailAt == s || f.DieAt == s
}

// draw decides whether this start is among those that the faults befall.
func (l *launch) draw() {
	f := l.scenario.Start
	l.faults = f
	spared := f.Only != "" && f.Only != l.stdin.Stdin
	if !spared && f.Times > 0 {
		spared = count(l.home, startCounter) > f.Times
	}
	if spared {
		l.faults.HangAt, l.faults.FailAt, l.faults.DieAt = "", "", ""
	}
}

// stage applies the faults of one point.
func (l *launch) stage(s Stage) error {
	if l.faults.HangAt == s {
		l.hangWhile(func(now *Scenario) bool { return now.Start.HangAt == s })
	}
	if l.faults.DieAt == s {
		dieHere()
	}
	if l.faults.FailAt == s {
		text := l.faults.FailText
		if text == "" {
			text = "failed as told at " + string(s)
		}
		return errors.New(text)
	}
	return nil
}

func (l *launch) run() (err error) {
	defer func() {
		if err != nil && !l.faults.LeaveDaemon {
			l.undo()
		}
	}()
	refusal := l.judge()
	if refusal != nil && !l.faults.LeakOnRefusal {
		return refusal
	}
	if err := l.stage(BeforeFork); err != nil {
		return err
	}
	time.Sleep(l.faults.Delay)
	address, err := l.fork()
	if err != nil {
		return err
	}
	if refusal != nil {
		l.faults.LeaveDaemon = true
		return refusal
	}
	if err := l.stage(AfterFork); err != nil {
		return err
	}
	if err := l.reply(address); err != nil {
		return err
	}
	return l.stage(AfterReply)
}

func (l *launch) readStdin() error {
	input, err := io.ReadAll(io.LimitReader(os.Stdin, 10<<20))
	if err != nil {
		return errors.Wrap(err, "reading stdin")
	}
	sum := sha256.Sum256(input)
	l.stdin = Entry{StdinLen: len(input), StdinHash: hex.EncodeToString(sum[:])}
	params, one := &bootapi.BootstrapParams{}, &anypb.Any{}
	switch {
	case len(input) == 0:
		l.stdin.Stdin = "none"
	case proto.Unmarshal(input, params) == nil && params.InstanceID == l.id && params.Namespace == l.ns:
		l.stdin.Stdin, l.params = "bootstrap", params
		for _, e := range params.GetExtensions() {
			l.stdin.Options = append(l.stdin.Options, option(e.GetValue()))
		}
		bare := proto.Clone(params).(*bootapi.BootstrapParams)
		bare.Extensions = nil
		l.stdin.Params, _ = protojson.Marshal(bare)
	case proto.Unmarshal(input, one) == nil && one.TypeUrl != "":
		l.stdin.Stdin = "legacy"
		l.stdin.Options = []Option{option(one)}
	default:
		l.stdin.Stdin = "unknown"
	}
	switch gen := l.scenario.generation(); {
	case gen == Lenient, gen == Dropping && l.stdin.Stdin != "legacy", l.judge() != nil:
	default:
		l.stdin.Applied = l.stdin.Options
	}
	return nil
}

func option(a *anypb.Any) Option {
	o := Option{TypeURL: a.GetTypeUrl(), Value: a.GetValue()}
	if m, err := a.UnmarshalNew(); err == nil {
		o.Decoded, _ = protojson.Marshal(m)
	}
	return o
}

// judge says whether a shim of this generation starts with what stdin held. The texts are those of real shims,
// because callers may tell by them.
func (l *launch) judge() error {
	switch l.scenario.generation() {
	case Bootstrap:
		if l.stdin.Stdin != "bootstrap" {
			return errors.New("shim was started through the deprecated API but was built against the new API; " +
				"if you upgraded containerd, you may need to restart the daemon")
		}
	case Legacy:
		switch l.stdin.Stdin {
		case "bootstrap":
			if l.scenario.Start.LeakOnRefusal {
				return errors.New("UnexpectedEof")
			}
			return errors.Errorf("type with url %s: not found", l.id)
		case "unknown":
			return errors.New("proto: cannot parse invalid wire-format data")
		}
	}
	return nil
}

// fork makes the sockets and the daemon, and returns the address to tell. If the group's shim runs already, it is
// that one's address and there is no daemon.
func (l *launch) fork() (string, error) {
	dir := l.socketDir()
	if l.params.GetSocketDir() != "" {
		if err := replaceLink(dir, "s"); err != nil {
			return "", err
		}
	}
	main, served, err := listenShim(l.scenario, dir, l.address, l.ns, l.grouping(), false)
	if err != nil {
		return "", err
	}
	if served {
		return main.address, nil
	}
	l.socks = append(l.socks, main)
	if l.debug {
		debug, _, err := listenShim(&Scenario{}, dir, l.address, l.ns, l.grouping(), true)
		if err != nil {
			return "", err
		}
		l.socks = append(l.socks, debug)
	}
	if l.scenario.generation() != Bootstrap && !l.scenario.NoAddressFile {
		if err := os.WriteFile("address", []byte(main.address), 0o644); err != nil {
			return "", errors.Wrap(err, "writing the address file")
		}
	}
	return main.address, l.spawn()
}

func (l *launch) spawn() error {
	exe, err := os.Executable()
	if err != nil {
		return errors.Wrap(err, "finding the shim's own binary")
	}
	args := []string{"-namespace", l.ns, "-id", l.id, "-address", l.address}
	if l.debug {
		args = append(args, "-debug")
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=4")
	if !l.scenario.Nameless {
		cmd.Env = append(cmd.Env, "OTEL_SERVICE_NAME=containerd-shim-"+l.id)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	for _, s := range l.socks {
		cmd.ExtraFiles = append(cmd.ExtraFiles, s.file)
	}
	if l.faults.InheritStdout {
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	}
	if err := cmd.Start(); err != nil {
		return errors.Wrap(err, "starting the shim's daemon")
	}
	l.daemon = cmd
	return nil
}

func (l *launch) undo() {
	if l.daemon != nil {
		_ = l.daemon.Process.Kill()
		_ = l.daemon.Wait()
	}
	for _, s := range l.socks {
		s.remove()
	}
}

func (x *execution) socketDir() string {
	if x.scenario.SocketDir != "" {
		return x.scenario.SocketDir
	}
	return filepath.Join(x.home, "s")
}

func (l *launch) socketDir() string {
	if dir := l.params.GetSocketDir(); dir != "" {
		return dir
	}
	return l.execution.socketDir()
}

// grouping is what the socket is named after: the id, or the group that the spec names.
func (l *launch) grouping() string {
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	data, err := os.ReadFile("config.json")
	if err != nil || json.Unmarshal(data, &spec) != nil {
		return l.id
	}
	for _, label := range []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"} {
		if group, ok := spec.Annotations[label]; ok {
			return group
		}
	}
	return l.id
}

func (l *launch) reply(address string) error {
	out, err := l.encodeReply(address)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(out)
	return errors.Wrap(err, "writing the reply")
}

func (l *launch) encodeReply(address string) ([]byte, error) {
	r := l.scenario.Reply
	res := &bootapi.BootstrapResult{
		Version: l.scenario.version(), Protocol: l.scenario.transport(), Address: address, Metadata: r.Metadata,
	}
	if r.Protocol != "" {
		res.Protocol = r.Protocol
	}
	if r.Address != "" {
		res.Address = r.Address
	}
	if l.scenario.omits("version") {
		res.Version = 0
	}
	if l.scenario.omits("protocol") {
		res.Protocol = ""
	}
	if l.scenario.omits("address") {
		res.Address = ""
	}
	if r.MountTypes != nil || r.MountTransforms != nil {
		if err := res.AddExtension(&types.MountCapabilities{Types: r.MountTypes,
			Transforms: r.MountTransforms}); err != nil {
			return nil, errors.Wrap(err, "encoding the mount capabilities")
		}
	}
	switch l.scenario.format() {
	case JSON:
		return json.Marshal(res)
	case Address:
		return []byte(res.Address), nil
	case Garbage:
		return []byte("\xff\xfe\x00 panic: not a reply\n"), nil
	case Empty:
		return nil, nil
	case Huge:
		return bytes.Repeat([]byte("x"), 16<<20), nil
	case Raw:
		return r.Raw, nil
	default:
		return proto.Marshal(res)
	}
}

func replaceLink(target, name string) error {
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return errors.Wrap(err, "replacing the link to the socket directory")
	}
	return errors.Wrap(os.Symlink(target, name), "linking the socket directory")
}
