// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// startCommand is the command line, environment and stdin of `start`.
func (l *Launcher) startCommand(r *StartRequest, p StartProtocol) (*exec.Cmd, error) {
	cmd, err := l.command(r.Binary, r.Namespace, r.ID, "", "start")
	if err != nil {
		return nil, err
	}
	cmd.Dir = r.Bundle
	if launchName(r.Token) == "" {
		cmd.Env = append(cmd.Env, CarrierEnv(r.Token))
	}
	var stdin proto.Message
	if p == ProtocolBootstrap {
		stdin, err = l.bootstrapParams(r)
	} else if r.Options != nil {
		stdin = r.Options
	}
	if err != nil {
		return nil, err
	}
	return cmd, giveStdin(cmd, stdin)
}

// deleteCommand is that of `delete`. The working directory is the bundle, except
// where that is in the way: Windows cannot remove the working directory of a
// process, and on FreeBSD the exec can fail in it.
func (l *Launcher) deleteCommand(r *DeleteRequest) (*exec.Cmd, error) {
	cmd, err := l.command(r.Binary, r.Namespace, r.ID, r.Bundle, "delete")
	if err != nil {
		return nil, err
	}
	if runtime.GOOS != "windows" && runtime.GOOS != "freebsd" {
		cmd.Dir = r.Bundle
	}
	return cmd, nil
}

// infoCommand is that of `-info`, which belongs to no task. The configured
// environment counts, as it may say where the OCI runtime is.
func (l *Launcher) infoCommand(b Binary, options *anypb.Any) (*exec.Cmd, error) {
	cmd := exec.Command(b.Path, "-info")
	cmd.Env = slices.Concat(daemonEnv(), l.config.Env, l.config.EnvOf(b))
	cmd.SysProcAttr = ownGroup()
	if options == nil {
		return cmd, nil
	}
	return cmd, giveStdin(cmd, options)
}

// command is what start and delete have in common. The order of arguments is
// part of the contract with shims, some of which parse them by position.
func (l *Launcher) command(b Binary, namespace, id, bundle, action string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, errors.Wrap(err, "cannot tell the daemon's own binary")
	}
	args := []string{"-namespace", namespace, "-address", l.config.GRPCAddress, "-publish-binary", self, "-id", id}
	if bundle != "" {
		args = append(args, "-bundle", bundle)
	}
	if level := log.GetLevel(); level == log.DebugLevel || level == log.TraceLevel {
		args = append(args, "-debug")
	}
	cmd := exec.Command(b.Path, append(args, action)...)
	cmd.Env = append(daemonEnv(),
		"GOMAXPROCS=2",
		"MAX_SHIM_VERSION=2",
		"TTRPC_ADDRESS="+l.config.TTRPCAddress,
		"GRPC_ADDRESS="+l.config.GRPCAddress,
		"NAMESPACE="+namespace,
	)
	cmd.Env = slices.Concat(cmd.Env, l.config.Env, l.config.EnvOf(b))
	cmd.SysProcAttr = ownGroup()
	return cmd, nil
}

// daemonEnv is the daemon's environment without a launch token, which it has if
// a shim started it.
func daemonEnv() []string {
	env := os.Environ()
	kept := make([]string, 0, len(env)+8)
	for _, entry := range env {
		if !strings.HasPrefix(entry, TokenEnv+"=") {
			kept = append(kept, entry)
		}
	}
	return kept
}

func (l *Launcher) bootstrapParams(r *StartRequest) (*bootapi.BootstrapParams, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, errors.Wrap(err, "cannot tell the daemon's own binary")
	}
	params := &bootapi.BootstrapParams{
		InstanceID:             r.ID,
		Namespace:              r.Namespace,
		LogLevel:               bootapi.LogLevelFromString(log.GetLevel().String()),
		ContainerdVersion:      version.Version,
		ContainerdGrpcAddress:  l.config.GRPCAddress,
		ContainerdTtrpcAddress: l.config.TTRPCAddress,
		ContainerdBinary:       self,
	}
	if l.config.SocketDir != "" {
		params.SocketDir = &l.config.SocketDir
	}
	if r.Options != nil {
		if err := params.AddExtension(r.Options); err != nil {
			return nil, errors.Wrap(err, "cannot pass on the start options")
		}
	}
	return params, nil
}

func giveStdin(cmd *exec.Cmd, message proto.Message) error {
	if message == nil {
		return nil
	}
	data, err := proto.Marshal(message)
	if err != nil {
		return errors.Wrap(err, "cannot marshal what the shim is to read")
	}
	cmd.Stdin = bytes.NewReader(data)
	return nil
}
