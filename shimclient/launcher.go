// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"cmp"
	"context"
	"path/filepath"
	"runtime"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// DefaultLaunchTimeout is how long a shim may take to answer `start`.
	DefaultLaunchTimeout = 2 * time.Minute
	// slotTime is how long a start counts against the limit.
	slotTime = 5 * time.Second
	// undoTime bounds the undoing of a failed start, which the caller waits for
	// even when it has given up.
	undoTime = 10 * time.Second
	// infoTime bounds `-info`, which a create waits for.
	infoTime = 30 * time.Second
)

// LauncherConfig is what all commands of a Launcher have in common.
type LauncherConfig struct {
	// GRPCAddress and TTRPCAddress are where the daemon listens.
	GRPCAddress, TTRPCAddress string
	// SocketDir is where shims are told to make their sockets; "": their default.
	SocketDir string
	// Env is added to the environment of each command, KEY=VALUE.
	Env []string
	// EnvOf is what a binary gets besides, after Env; nil: nothing.
	EnvOf func(Binary) []string
	// MaxStarts is how many starts may run at once; 0: two per CPU.
	MaxStarts int
	// LaunchTimeout is how long a shim may take to answer `start`, not counting
	// the wait for its turn; 0: DefaultLaunchTimeout.
	LaunchTimeout time.Duration
	// Admit is asked right before a binary is executed with `start` or -info, whose error it is if it does not let it;
	// nil: it does. What was found out earlier may not be so any more: a start waits for its turn, and a shim that is
	// started for no container long after a create has asked. It is not asked before `delete`: see Policy.
	Admit func(context.Context, Binary) error
	// OnQueued is told how long a start has waited for its turn, OnExec each execution of a shim's binary: "start",
	// "delete" or "info". Both are for counting, must return at once, and may be nil.
	OnQueued func(time.Duration)
	OnExec   func(command string)
}

// Launcher runs the commands of shim binaries: start, delete and -info. It is
// the only place that executes one. Safe for concurrent use.
type Launcher struct {
	config    LauncherConfig
	limiter   *limiter // of starts
	deletes   *limiter
	protocols protocolBook
}

// NewLauncher makes a Launcher.
func NewLauncher(config LauncherConfig) *Launcher {
	if config.LaunchTimeout <= 0 {
		config.LaunchTimeout = DefaultLaunchTimeout
	}
	if config.EnvOf == nil {
		config.EnvOf = func(Binary) []string { return nil }
	}
	if config.Admit == nil {
		config.Admit = func(context.Context, Binary) error { return nil }
	}
	if config.OnQueued == nil {
		config.OnQueued = func(time.Duration) {}
	}
	if config.OnExec == nil {
		config.OnExec = func(string) {}
	}
	return &Launcher{
		config: config, limiter: newLimiter(config.MaxStarts, slotTime), deletes: newLimiter(0, slotTime),
	}
}

// StartRequest asks for a shim process.
type StartRequest struct {
	Binary Binary
	// Protocol is what goes to the shim's stdin; "" is auto.
	Protocol      StartProtocol
	Namespace, ID string
	// Bundle is the working directory of the shim; its log fifo must be open
	// (OpenLog), as a shim opens it for writing before it serves.
	Bundle string
	// Token marks every process of this launch: NewToken, or NamedToken of ID. Required.
	Token string
	// Options are the runtime's start options; nil: none.
	Options *anypb.Any
	// SocketIDs are ids besides ID after which the shim may name its socket:
	// those of the group that the spec's annotations name.
	SocketIDs []string
	// Addresses is asked for addresses that the shim has left in the bundle, after
	// a start that failed or that answered nothing. May be nil.
	Addresses func() []string
}

// Start runs `shim start` and returns its checked reply.
//
// Starts wait for their turn in the order in which they came, unless ctx carries
// one (TakeTurn). When Start fails,
// also because ctx has ended, nothing of the launch is left: the helper's
// process group and all that carry the token have been killed, and sockets
// without a listener have been removed; what could not be undone in 10 s is
// named in the error. After a success the processes are the caller's.
//
// Errors: the class of ctx's end while waiting or running; DeadlineExceeded with
// ErrLaunchTimeout; InvalidArgument or NotImplemented for a bad reply (see
// ParseReply); ErrProtocolRefused; that of LauncherConfig.Admit; else unclassified, with the shim's own words.
func (l *Launcher) Start(ctx context.Context, r StartRequest) (*bootapi.BootstrapResult, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	ctx, turn, err := l.TakeTurn(ctx)
	if err != nil {
		return nil, errors.Wrapf(err, "cannot start a shim for %s/%s", r.Namespace, r.ID)
	}
	defer turn.End()
	ctx, cancel := context.WithTimeoutCause(ctx, l.config.LaunchTimeout, ErrLaunchTimeout)
	defer cancel()
	result, err := l.launch(ctx, r)
	return result, errors.Wrapf(err, "cannot start shim %s for %s/%s", r.Binary.Path, r.Namespace, r.ID)
}

func (r *StartRequest) validate() error {
	if err := checkTarget("start", r.Binary, r.Namespace, r.ID, r.Bundle); err != nil {
		return err
	}
	if _, err := Choice("start protocol", string(r.Protocol), StartProtocols...); err != nil {
		return err
	}
	if name := launchName(r.Token); name != "" && name != r.ID {
		return errors.Wrapf(errdefs.ErrInvalidArgument, "%q is not the token of a launch of %s", r.Token, r.ID)
	}
	return checkToken(r.Token)
}

// PassesOnID reports whether a shim gives the id that it is started under to all that it runs, so that the launch can
// have a NamedToken. The content of the binary tells; CheckNamed makes sure of it.
func (l *Launcher) PassesOnID(b Binary) bool {
	return runtime.GOOS == "linux" && l.protocols.named(b.Path)
}

func checkTarget(action string, b Binary, namespace, id, bundle string) error {
	missing := ""
	switch {
	case !filepath.IsAbs(b.Path):
		missing = "an absolute path of its binary"
	case namespace == "":
		missing = "a namespace"
	case id == "":
		missing = "an id"
	case !filepath.IsAbs(bundle):
		missing = "an absolute path of its bundle"
	default:
		return nil
	}
	return errors.Wrapf(errdefs.ErrInvalidArgument, "cannot %s a shim without %s", action, missing)
}

// launch tries the protocols in turn, and once more from the start where what was
// learnt about the shim does not hold any more.
func (l *Launcher) launch(ctx context.Context, r StartRequest) (*bootapi.BootstrapResult, error) {
	result, err := l.tryProtocols(ctx, r)
	if errors.Is(err, errOutlived) {
		log.G(ctx).WithFields(log.Fields{"id": r.ID, "namespace": r.Namespace, "shim": r.Binary.Path}).
			Info("shim answers in another form than before, starting it once more")
		result, err = l.tryProtocols(ctx, r)
	}
	return result, err
}

// errOutlived: the shim is another than the start protocol was learnt from.
var errOutlived = errors.New("what was learnt about the shim does not hold any more")

func (l *Launcher) tryProtocols(ctx context.Context, r StartRequest) (*bootapi.BootstrapResult, error) {
	order, file, known := l.protocols.order(r.Binary.Path, r.Protocol)
	var refusal error
	for i, protocol := range order {
		result, out, err := l.attempt(ctx, r, protocol)
		if err == nil && !(i == 0 && known.outlived(out.binary)) {
			l.protocols.learn(file, guess{
				protocol: protocol, silent: known.silent, binary: out.binary, named: known.named,
			})
			return result, nil
		}
		undone := l.undo(ctx, r, result)
		switch {
		case err == nil && undone == nil:
			l.protocols.forget(file)
			return nil, errOutlived
		case undone != nil:
			return nil, errors.Wrapf(cmp.Or(err, errOutlived), "not all of the failed launch could be ended (%v)",
				undone)
		case ctx.Err() != nil || !exitedByItself(err) || !refused(protocol, out.said, known.silent):
			return nil, err
		case refusal != nil:
			return nil, errors.Wrapf(ErrProtocolRefused, "%v; and with the %s protocol: %v", refusal, protocol, err)
		case i == len(order)-1:
			return nil, errors.Wrapf(ErrProtocolRefused, "with the %s protocol: %v", protocol, err)
		}
		refusal = errors.Wrapf(err, "with the %s protocol", protocol)
		log.G(ctx).WithError(err).WithFields(log.Fields{"id": r.ID, "namespace": r.Namespace, "shim": r.Binary.Path}).
			Infof("shim does not take the %s start protocol, trying the other one", protocol)
	}
	return nil, refusal
}

// attempted is what a helper wrote: all of it, for refused, and whether its reply is
// a BootstrapResult in protobuf.
type attempted struct {
	said   string
	binary bool
}

// attempt runs the helper once. The result is set also where it was no use, for undo.
func (l *Launcher) attempt(ctx context.Context, r StartRequest, p StartProtocol) (_ *bootapi.BootstrapResult,
	a attempted, _ error) {
	cmd, err := l.startCommand(&r, p)
	if err != nil {
		return nil, a, err
	}
	if err := l.config.Admit(ctx, r.Binary); err != nil {
		return nil, a, err
	}
	l.config.OnExec("start")
	out, err := runHelper(ctx, cmd)
	a = attempted{said: out.stderr, binary: !isText(out.stdout)}
	if err != nil {
		a.said += string(out.stdout)
		return nil, a, err
	}
	logStderr(ctx, "starting", r.Namespace, r.ID, out.stderr)
	result, err := ParseReply(r.reply(out.stdout))
	if err != nil && out.stderr != "" {
		err = errors.Wrapf(err, "shim said on stderr: %s", out.stderr)
	}
	if err == nil {
		pinAddress(result)
	}
	return result, a, err
}

// reply is what the helper answered: on stdout or, if that is empty, with the
// address in its bundle. Older async shims of rust-extensions end without waiting
// for what they write to stdout, which a busy machine loses.
func (r *StartRequest) reply(stdout []byte) []byte {
	if len(bytes.TrimSpace(stdout)) > 0 || r.Addresses == nil {
		return stdout
	}
	if left := r.Addresses(); len(left) == 1 {
		return []byte(left[0])
	}
	return stdout
}

// undo ends what a failed attempt has started. The caller's context may have
// ended, so it counts for its values only.
func (l *Launcher) undo(ctx context.Context, r StartRequest, result *bootapi.BootstrapResult) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	err := EndLaunch(ctx, r.Token, nil)
	if errdefs.IsNotImplemented(err) {
		err = nil
	}
	addresses := []string{result.GetAddress()}
	if r.Addresses != nil {
		addresses = append(addresses, r.Addresses()...)
	}
	l.RemoveSockets(r.Namespace, append([]string{r.ID}, r.SocketIDs...), addresses...)
	return err
}

// DeleteRequest asks for `shim delete`, which cleans up after a shim.
type DeleteRequest struct {
	Binary        Binary
	Namespace, ID string
	// Bundle is the bundle's original path.
	Bundle string
	// Timeout is how long the command may take, not counting the wait for its
	// turn; 0: until ctx ends.
	Timeout time.Duration
}

// DeleteResult is what `shim delete` answered.
type DeleteResult struct {
	// Pid is 0 where the shim did not know it.
	Pid, Status uint32
	// ExitedAt is zero where the shim gave no time.
	ExitedAt time.Time
}

// Delete runs `shim delete`. Deletes wait for their turn in the order in which
// they came, two per CPU at once, since hundreds of shims may die together; one
// that takes long makes room after 5 s. When Timeout has passed, or ctx ends where
// there is none, the process group of the command is killed; with a Timeout ctx
// ends the wait alone. stdout is the reply; stderr is logged, or part of the error.
// ErrDeleteReply means that it has done its work and that its reply, which may be
// empty, tells no exit.
func (l *Launcher) Delete(ctx context.Context, r DeleteRequest) (*DeleteResult, error) {
	if err := checkTarget("delete", r.Binary, r.Namespace, r.ID, r.Bundle); err != nil {
		return nil, err
	}
	turn, err := l.deletes.acquire(ctx)
	if err != nil {
		return nil, errors.Wrapf(err, "cannot run delete of a shim for %s/%s: waiting for others to end", r.Namespace,
			r.ID)
	}
	defer turn.End()
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), r.Timeout)
		defer cancel()
	}
	result, err := l.delete(ctx, r)
	return result, errors.Wrapf(err, "cannot run delete of shim %s for %s/%s", r.Binary.Path, r.Namespace, r.ID)
}

func (l *Launcher) delete(ctx context.Context, r DeleteRequest) (*DeleteResult, error) {
	cmd, err := l.deleteCommand(&r)
	if err != nil {
		return nil, err
	}
	l.config.OnExec("delete")
	out, err := runHelper(ctx, cmd)
	if err != nil {
		return nil, err
	}
	logStderr(ctx, "cleaning up", r.Namespace, r.ID, out.stderr)
	return parseDelete(out.stdout)
}

// Info runs `shim -info`, with the options that it is to answer for; nil: none.
// When ctx ends, or after 30 s, its process group is killed.
func (l *Launcher) Info(ctx context.Context, b Binary, options *anypb.Any) (*types.RuntimeInfo, error) {
	if !filepath.IsAbs(b.Path) {
		return nil, errors.Wrap(errdefs.ErrInvalidArgument,
			"cannot ask a shim for its info without an absolute path of its binary")
	}
	ctx, cancel := context.WithTimeout(ctx, infoTime)
	defer cancel()
	info, err := l.info(ctx, b, options)
	return info, errors.Wrapf(err, "cannot get the info of shim %s", b.Path)
}

func (l *Launcher) info(ctx context.Context, b Binary, options *anypb.Any) (*types.RuntimeInfo, error) {
	cmd, err := l.infoCommand(b, options)
	if err != nil {
		return nil, err
	}
	if err := l.config.Admit(ctx, b); err != nil {
		return nil, err
	}
	l.config.OnExec("info")
	out, err := runHelper(ctx, cmd)
	if err != nil {
		return nil, err
	}
	return parseInfo(out.stdout)
}

// logStderr passes on what a command that succeeded has written beside its reply: for debugging, not for an alarm.
// What one that failed has written is in its error. runc's delete misses the file with init's pid after each
// create that failed.
func logStderr(ctx context.Context, doing, namespace, id, stderr string) {
	if stderr != "" {
		log.G(ctx).WithFields(log.Fields{"id": id, "namespace": namespace, "stderr": stderr}).
			Infof("shim wrote to stderr while %s", doing)
	}
}
