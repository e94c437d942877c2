// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/shimyard/shimyard/manager/inspect"
)

var begin = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

const longID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// yard is a daemon that answers from a list.
type yard struct {
	instances []inspect.Instance
	err       error
	logs      []inspect.LogsResponse
	asked     []any
}

func (y *yard) close() {}

func (y *yard) ask(_ context.Context, question, answer any) error {
	y.asked = append(y.asked, question)
	if y.err != nil {
		return y.err
	}
	switch a := answer.(type) {
	case *inspect.ListResponse:
		q := question.(*inspect.ListRequest)
		*a = inspect.ListResponse{Version: inspect.Version}
		for _, i := range y.instances {
			if q.Namespace == "" || q.Namespace == i.Namespace {
				a.Instances = append(a.Instances, i)
			}
		}
	case *inspect.InspectResponse:
		*a = inspect.InspectResponse{Version: inspect.Version, Instance: y.instances[0], Bundle: "/run/b",
			Exit: &inspect.Exit{Status: 7, Told: true}}
	case *inspect.DumpResponse:
		*a = inspect.DumpResponse{Version: inspect.Version, Pid: 7, Text: "goroutine 1 [running]:\n\tmain.main()\n"}
	case *inspect.LogsResponse:
		if len(y.logs) > 0 {
			*a, y.logs = y.logs[0], y.logs[1:]
		}
	}
	return nil
}

func node() *yard {
	return &yard{instances: []inspect.Instance{
		{
			Namespace: "default", ID: "redis", Kind: "task", State: inspect.StateRunning, Since: begin.Add(-time.Hour),
			Created: begin.Add(-90 * time.Second),
			Runtime: "io.containerd.runc.v2", Source: "warm", API: 3, Address: "unix:///run/s/1", Tasks: 1,
			Shim: &inspect.Process{Pid: 41, State: "S", RSS: 11 << 20, CPU: 1e9},
			Init: &inspect.Process{Pid: 42, State: "D"},
		},
		{
			Namespace: "k8s.io", ID: longID, Kind: "sandbox", State: inspect.StateUnresponsive,
			Since: begin.Add(-3 * time.Minute), Created: begin.Add(-50 * time.Hour),
			Runtime: "io.containerd.kata.v2", Source: "start", API: 2, Address: "unix:///run/s/2", Tasks: 2,
			Shim: &inspect.Process{Pid: 51, Deleted: true},
		},
		{
			Namespace: "k8s.io", ID: "gone", Kind: "task", State: inspect.StateCleaning,
			Since:     begin.Add(-10 * time.Second),
			LastError: "cannot remove the bundle: device or resource busy\nheld by pid 99", LastErrorAt: begin,
		},
	}}
}

// run runs the command line and returns what it wrote and its exit code.
func run(t *testing.T, y *yard, args ...string) (out string, code int, failure string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var b bytes.Buffer
	cmd := (&app{connect: func(string) (asker, error) { return y, nil },
		now: func() time.Time { return begin }}).command()
	root := &cli.Command{Name: "containerd", Writer: &b, ErrWriter: &b, EnableShellCompletion: true,
		Commands: []*cli.Command{cmd}, ExitErrHandler: func(context.Context, *cli.Command, error) {}}
	err := root.Run(ctx, append([]string{"containerd", "shims"}, args...))
	var coder cli.ExitCoder
	switch {
	case errors.As(err, &coder):
		return b.String(), coder.ExitCode(), err.Error()
	case err != nil:
		return b.String(), 1, err.Error()
	}
	return b.String(), 0, ""
}

func TestList(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"plain", nil, `
NAMESPACE   ID              KIND      STATE          AGE     RUNTIME                 SHIM-PID   RSS      TASKS
default     redis           task      running        90s     io.containerd.runc.v2   41         11Mi     1
k8s.io      0123456789abc   sandbox   unresponsive   2d2h    io.containerd.kata.v2   51         <none>   2
k8s.io      gone            task      cleaning       <none>  <none>                  <none>     <none>   <none>
`},
		{"state", []string{"--state", "unresponsive", "-q"}, longID + "\n"},
		{"runtime", []string{"--runtime", "io.containerd.runc.v2", "-o", "name"}, "default/redis\n"},
		{"namespace", []string{"-n", "default", "-q"}, "redis\n"},
		{"wide without header", []string{"-o", "wide", "--no-headers", "--state", "cleaning"},
			"k8s.io   gone   task   cleaning   <none>   <none>   <none>   <none>   <none>   10s   <none>   <none>   <none>   " +
				"cannot remove the bundle: device or resource busy\\nheld by p…\n"},
		{"whole ids", []string{"--no-trunc", "--no-headers", "--state", "unresponsive"},
			"k8s.io   " + longID + "   sandbox   unresponsive   2d2h   io.containerd.kata.v2   51   <none>   2\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, code, failure := run(t, node(), append([]string{"ls"}, c.args...)...)
			require.Zero(t, code, failure)
			require.Equal(t, squeeze(c.want), squeeze(out))
		})
	}
}

// squeeze makes tables comparable without their padding.
func squeeze(s string) string {
	var lines []string
	for _, l := range strings.Split(strings.TrimSpace(s), "\n") {
		lines = append(lines, strings.Join(strings.Fields(l), " "))
	}
	return strings.Join(lines, "\n")
}

func TestListIsAligned(t *testing.T) {
	out, _, _ := run(t, node(), "ls")
	lines := strings.Split(out, "\n")
	at := strings.Index(lines[0], "KIND")
	for _, l := range lines[1:4] {
		require.Contains(t, []string{"task", "sandbox"}, strings.Fields(l[at:])[0], out)
	}
}

func TestListAsData(t *testing.T) {
	var r inspect.ListResponse
	out, code, _ := run(t, node(), "ls", "-o", "json")
	require.Zero(t, code)
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	require.Equal(t, inspect.ListResponse{Version: 1, Instances: node().instances}, r)

	out, code, _ = run(t, node(), "ls", "-o", "yaml", "--state", "running")
	require.Zero(t, code)
	require.Contains(t, out, "version: 1\ninstances:\n")
	require.Contains(t, out, "namespace: default\n")
	require.NotContains(t, out, "{")

	// No instance is an empty list, not null, and a table with its header alone.
	out, _, _ = run(t, &yard{}, "ls", "-o", "json")
	require.Contains(t, out, `"instances": []`)
	out, _, _ = run(t, &yard{}, "ls")
	require.Equal(t, strings.Join(columns, " "), squeeze(out))
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{"ls", "extra"}, {"ls", "--state", "odd"}, {"ls", "-o", "xml"}, {"ls", "--nonsense"}, {"inspect"},
		{"inspect", "a", "b"},
		{"inspect", "-o", "xml", "redis"}, {"dump"}, {"logs"}, {"logs", "--tail", "-1", "redis"}, {"top", "extra"},
		{"top", "--interval", "0s"}, {"check", "extra"}, {"bogus"}, {"bogus", "redis"}, {"-n", "k8s.io", "lst"},
	} {
		y := node()
		_, code, failure := run(t, y, args...)
		require.Equal(t, ExitUsage, code, "%v: %s", args, failure)
		require.Empty(t, y.asked, "%v", args)
	}
	_, _, failure := run(t, node(), "bogus")
	require.Contains(t, failure, `no command "bogus", there are ls, inspect,`)
	out, code, _ := run(t, node())
	require.Zero(t, code)
	require.Contains(t, out, "show all that is known of a task or sandbox", "no command at all shows the help")
}

func TestMatch(t *testing.T) {
	all := []inspect.Instance{{Namespace: "a", ID: "web"}, {Namespace: "a", ID: "web-1"}, {Namespace: "b", ID: "web-2"},
		{Namespace: "b", ID: "db"}, {Namespace: "a", ID: "db"}}
	for name, want := range map[string]string{"web": "a/web", "web-2": "b/web-2", "b/web": "b/web-2", "b/d": "b/db"} {
		i, err := match(all, name)
		require.NoError(t, err, name)
		require.Equal(t, want, i.Namespace+"/"+i.ID, name)
	}
	for _, name := range []string{"web-", "db", "d"} {
		_, err := match(all, name)
		require.True(t, errdefs.IsInvalidArgument(err), "%s: %v", name, err)
		require.Contains(t, err.Error(), "/")
	}
	for _, name := range []string{"no", "c/web", "", "a/"} {
		_, err := match(all, name)
		require.True(t, errdefs.IsNotFound(err), "%q: %v", name, err)
	}
}

func TestInspectAndDump(t *testing.T) {
	y := node()
	out, code, failure := run(t, y, "inspect", "red")
	require.Zero(t, code, failure)
	require.Contains(t, out, `"status": 7`)
	require.Equal(t, &inspect.InspectRequest{Namespace: "default", ID: "redis"}, y.asked[1])
	_, code, _ = run(t, node(), "inspect", "nobody")
	require.Equal(t, ExitNotFound, code)

	out, code, _ = run(t, node(), "dump", "redis")
	require.Zero(t, code)
	require.Equal(t, "goroutine 1 [running]:\n\tmain.main()\n", out)
	file := filepath.Join(t.TempDir(), "stacks")
	out, code, _ = run(t, node(), "dump", "-f", file, "redis")
	require.Zero(t, code)
	require.Empty(t, out)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(data), "main.main()")
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{errors.Wrap(errdefs.ErrNotFound, "no such"), ExitNotFound},
		{errors.Wrap(errdefs.ErrUnavailable, "connection refused"), ExitUnavailable},
		{errors.Wrap(errdefs.ErrNotImplemented, "stock"), ExitUnavailable},
		{errors.Wrap(errdefs.ErrFailedPrecondition, "the shim does not catch SIGUSR1"), ExitUnsupported},
		{errors.Wrap(errdefs.ErrPermissionDenied, "no"), ExitProblem},
		{context.DeadlineExceeded, ExitUnavailable},
	} {
		_, code, _ := run(t, &yard{err: c.err}, "ls")
		require.Equal(t, c.code, code, "%v", c.err)
	}
}

func TestCheck(t *testing.T) {
	out, code, failure := run(t, node(), "check")
	require.Equal(t, ExitProblem, code)
	require.Empty(t, failure)
	require.Equal(t, "k8s.io/"+longID+": its shim (pid 51) has not answered for 3m0s\n"+
		"k8s.io/"+longID+": its shim (pid 51) runs a binary that was removed or replaced; its tasks go on, new ones get the present binary\n"+
		"k8s.io/gone: cleaning up has not succeeded for 10s: cannot remove the bundle: device or resource busy\\nheld by pid 99\n", out)

	y := node()
	y.instances = y.instances[:1]
	out, code, _ = run(t, y, "check")
	require.Zero(t, code)
	require.Empty(t, out)

	at := func(state string, before time.Duration) inspect.Instance {
		return inspect.Instance{State: state, Since: begin.Add(-before)}
	}
	require.Empty(t, problems(at(inspect.StateRestoring, 59*time.Second), begin))
	require.Len(t, problems(at(inspect.StateRestoring, time.Minute), begin), 1)
	require.Len(t, problems(at(inspect.StateReconnecting, time.Second), begin), 1)
	require.Empty(t, problems(at(inspect.StateCleaning, time.Hour), begin))
	require.Empty(t, problems(at(inspect.StateDeleting, time.Hour), begin))
}

// hostile is what a shim could have put into an error: sequences that a terminal obeys, also of one that takes single
// bytes for control characters, and a line of its own.
const hostile = "a\x1b]0;title\ab\u009b31mc\x9bd\x7fe\nk8s.io/fine: f\r\u202eg\tü"

// TestNothingForTheTerminal: whatever is in an error, it is one line of text to a terminal, and in data what it was.
func TestNothingForTheTerminal(t *testing.T) {
	y := node()
	y.instances[2].LastError = hostile
	const shown = `a\x1b]0;title\ab\u009b31mc\x9bd\x7fe\nk8s.io/fine: f\r\u202eg\tü`
	require.Equal(t, shown, escape(hostile))
	for _, args := range [][]string{{"check"}, {"ls", "-o", "wide", "--no-trunc"}} {
		out, _, _ := run(t, y, args...)
		require.Contains(t, out, shown+"\n", "%v", args)
	}
	for _, args := range [][]string{{"check"}, {"ls", "-o", "wide"}, {"ls", "-o", "json"}, {"ls", "-o", "yaml"}} {
		out, _, _ := run(t, y, args...)
		require.True(t, utf8.ValidString(out), "%v: %q", args, out)
		for _, r := range out {
			require.True(t, r == '\n' || !unicode.IsControl(r), "%v: %q in %q", args, r, out)
		}
	}
	out, _, _ := run(t, y, "ls", "-o", "json")
	var r inspect.ListResponse
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	require.Equal(t, strings.ToValidUTF8(hostile, "\ufffd"), r.Instances[2].LastError)

	y.err = errors.Wrap(errdefs.ErrFailedPrecondition, hostile)
	_, code, failure := run(t, y, "dump", "redis")
	require.Equal(t, ExitUnsupported, code)
	require.Contains(t, failure, shown)
}

func TestLogsFollow(t *testing.T) {
	y := node()
	y.logs = []inspect.LogsResponse{
		{Lines: []inspect.LogLine{{Number: 4, Text: "a"}, {Number: 5, Text: "b"}}, Last: 5},
	}
	out, code, _ := run(t, y, "logs", "--tail", "2", "redis")
	require.Zero(t, code)
	require.Equal(t, "a\nb\n", out)
	require.Equal(t, &inspect.LogsRequest{Namespace: "default", ID: "redis", Tail: 2}, y.asked[1])
}

func TestTop(t *testing.T) {
	before := sample{begin, node().instances}
	later := node().instances
	shim := *later[1].Shim
	shim.CPU = 5e8
	later[1].Shim = &shim
	before.all[1].Shim = &inspect.Process{Pid: 51}
	second := later[1]
	second.ID, second.Init = "side", &inspect.Process{State: "S"}
	rows := topRows(before, sample{begin.Add(time.Second), append(later, second)})
	require.Equal(t, [][]string{
		{"51", "2", "unresponsive", "0", "50.0", "", "S", "k8s.io/0123456789abc,k8s.io/side"},
		{"41", "1", "running", "11Mi", "0.0", "S", "D", "default/redis"},
	}, rows)
	// A pid that is another process by now has used nothing that is known.
	require.Zero(t, share(map[int]uint64{1: 10}, &inspect.Process{Pid: 1, CPU: 5}, time.Second))
	require.Zero(t, share(nil, &inspect.Process{Pid: 1, CPU: 5}, time.Second))
}

func TestAgeAndSize(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m0s", 59 * time.Minute: "59m",
		4 * time.Hour: "4h0m", 30 * time.Hour: "30h",
		49 * time.Hour: "2d1h", 400 * time.Hour: "16d",
	} {
		require.Equal(t, want, age(d))
	}
	for n, want := range map[uint64]string{0: "0", 2048: "2Ki", 5 << 20: "5Mi", 11 << 30: "11Gi"} {
		require.Equal(t, want, size(n))
	}
	require.Equal(t, "a-name-that-is-long-but-no-digest-and-is-therefore-not-cut-at-all-x",
		short("a-name-that-is-long-but-no-digest-and-is-therefore-not-cut-at-all-x"))
}

// introspected is the introspection API of a daemon.
type introspected struct {
	introspection.UnimplementedIntrospectionServer
	answer func(question any) (any, error)
}

func (s *introspected) PluginInfo(_ context.Context,
	r *introspection.PluginInfoRequest) (*introspection.PluginInfoResponse, error) {
	q, err := typeurl.UnmarshalAny(r.Options)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	a, err := s.answer(q)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	extra, err := typeurl.MarshalAny(a)
	if err != nil {
		return nil, err
	}
	return &introspection.PluginInfoResponse{Extra: &anypb.Any{TypeUrl: extra.GetTypeUrl(), Value: extra.GetValue()}},
		nil
}

func TestClient(t *testing.T) {
	dir, err := os.MkdirTemp("", "sy")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	daemon := &introspected{}
	server := grpc.NewServer()
	introspection.RegisterIntrospectionServer(server, daemon)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)

	c, err := dial(socket)
	require.NoError(t, err)
	t.Cleanup(c.close)
	daemon.answer = func(q any) (any, error) {
		require.Equal(t, &inspect.ListRequest{Namespace: "ns"}, q)
		return &inspect.ListResponse{Version: 1, Instances: node().instances}, nil
	}
	var r inspect.ListResponse
	require.NoError(t, c.ask(t.Context(), &inspect.ListRequest{Namespace: "ns"}, &r))
	require.Equal(t, node().instances, r.Instances)

	// Both ways in which containerd's own runtime says that it does not know the question.
	url, err := typeurl.TypeURL(&inspect.ListRequest{})
	require.NoError(t, err)
	for _, stock := range []error{
		errors.Wrapf(typeurl.ErrNotFound, "type with url %s", url),
		errors.Wrap(errdefs.ErrNotImplemented, "request of type *inspect.ListRequest"),
	} {
		daemon.answer = func(any) (any, error) { return nil, stock }
		err = exitError(c.ask(t.Context(), &inspect.ListRequest{}, &r))
		require.Equal(t, ExitUnavailable, err.(cli.ExitCoder).ExitCode())
		require.Contains(t, err.Error(), "containerd's own runtime")
	}
	daemon.answer = func(any) (any, error) { return nil, errors.Wrap(errdefs.ErrNotFound, "task c1") }
	err = exitError(c.ask(t.Context(), &inspect.InspectRequest{ID: "c1"}, &r))
	require.Equal(t, ExitNotFound, err.(cli.ExitCoder).ExitCode())

	_, err = dial(filepath.Join(dir, "none"))
	require.Equal(t, ExitUnavailable, exitError(err).(cli.ExitCoder).ExitCode(), "%v", err)
}
