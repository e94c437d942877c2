// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// delete is the action of that name: it ends what the shim has left and says how the init exited.
func (x *execution) delete() error {
	stdin, _ := io.ReadAll(io.LimitReader(os.Stdin, 1<<20))
	x.trace(Entry{StdinLen: len(stdin)})
	f := x.scenario.Delete
	fmt.Fprint(os.Stderr, f.Stderr)
	if f.Hang {
		x.hangWhile(func(now *Scenario) bool { return now.Delete.Hang })
	}
	if f.Fail < 0 || f.Fail > 0 && count(x.home, deleteCounter) <= f.Fail {
		if f.FailText == "" {
			f.FailText = "delete failed as told"
		}
		return errors.New(f.FailText)
	}
	cwd, err := os.Getwd()
	if err != nil {
		return errors.Wrap(err, "finding the bundle")
	}
	resp := x.clean(filepath.Join(filepath.Dir(cwd), x.id))
	out, err := proto.Marshal(resp)
	if err != nil {
		return errors.Wrap(err, "encoding the reply")
	}
	if f.Garbage {
		out = []byte("\xff\xfe\x00 panic: not a reply\n")
	}
	if f.Mute {
		return nil
	}
	_, err = os.Stdout.Write(out)
	return errors.Wrap(err, "writing the reply")
}

func (x *execution) clean(bundle string) *taskapi.DeleteResponse {
	pid := x.killGuests(bundle)
	resp := &taskapi.DeleteResponse{Pid: uint32(pid), ExitStatus: 128 + uint32(unix.SIGKILL),
		ExitedAt: stamp(time.Now())}
	data, err := os.ReadFile(filepath.Join(bundle, "exit.json"))
	var rec exitRecord
	if err == nil && json.Unmarshal(data, &rec) == nil && rec.Pid > 0 {
		resp.Pid, resp.ExitStatus, resp.ExitedAt = uint32(rec.Pid), uint32(rec.Status), stamp(rec.Timestamp)
	}
	return resp
}

// killGuests ends what runs in a bundle, and returns the pid that init.pid names. Guests are told by what they run
// and where, because that pid may be a stranger's by now.
func (x *execution) killGuests(bundle string) int {
	for _, p := range findProcs(x.home) {
		if p.Role == RoleGuest && sameDir(p.Bundle, bundle) {
			_ = p.Kill()
		}
	}
	data, err := os.ReadFile(filepath.Join(bundle, "init.pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return pid
}

func sameDir(a, b string) bool {
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(ia, ib)
}

// info is the answer to -info.
func (x *execution) info() error {
	stdin, err := io.ReadAll(io.LimitReader(os.Stdin, 10<<20))
	if err != nil {
		return errors.Wrap(err, "reading stdin")
	}
	opts := &anypb.Any{}
	e := Entry{Stdin: "none", StdinLen: len(stdin)}
	if len(stdin) > 0 {
		e.Stdin = "unknown"
		if proto.Unmarshal(stdin, opts) == nil {
			e.Stdin, e.Options = "legacy", []Option{option(opts)}
		}
	}
	x.trace(e)
	a := x.scenario.Info
	if a.Hang {
		x.hangWhile(func(now *Scenario) bool { return now.Info.Hang })
	}
	if a.Fail != "" {
		return errors.New(a.Fail)
	}
	out, err := x.encodeInfo(opts)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(out)
	return errors.Wrap(err, "writing the info")
}

func (x *execution) encodeInfo(opts *anypb.Any) ([]byte, error) {
	a := x.scenario.Info
	info := &types.RuntimeInfo{
		Name: "io.containerd.fake.v1", Version: &types.RuntimeVersion{Version: "fake"}, Annotations: a.Annotations,
	}
	if opts.TypeUrl != "" {
		info.Options = opts
	}
	switch {
	case a.NoFeatures:
	case a.ForeignFeatures:
		foreign, err := anypb.New(&types.RuntimeVersion{Version: "1"})
		if err != nil {
			return nil, errors.Wrap(err, "encoding the features")
		}
		info.Features = foreign
	default:
		f := features.Features{OCIVersionMin: "1.0.0", OCIVersionMax: "1.3.0", Linux: &features.Linux{}}
		if a.IDMap != nil {
			f.Linux.MountExtensions = &features.MountExtensions{IDMap: &features.IDMap{Enabled: a.IDMap}}
		}
		data, err := json.Marshal(f)
		if err != nil {
			return nil, errors.Wrap(err, "encoding the features")
		}
		info.Features = &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/features/Features",
			Value: data}
	}
	out, err := proto.Marshal(info)
	return out, errors.Wrap(err, "encoding the info")
}
