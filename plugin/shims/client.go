// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shims

import (
	"context"
	"fmt"
	"os"
	"strings"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"
)

// errStock: the daemon answers, and does not know our questions.
var errStock = errors.New("this daemon runs containerd's own runtime, which cannot be asked about its shims")

// asker puts questions of package inspect to a daemon.
type asker interface {
	ask(ctx context.Context, question, answer any) error
	close()
}

// client asks over containerd's introspection API.
type client struct {
	conn *grpc.ClientConn
	api  introspection.IntrospectionClient
}

// dial fails at once where there is no socket; gRPC would wait for it until the deadline.
func dial(address string) (asker, error) {
	if _, err := os.Stat(strings.TrimPrefix(address, "unix://")); err != nil {
		return nil, errors.Wrapf(errdefs.ErrUnavailable, "cannot reach a daemon: %v", err)
	}
	conn, err := grpc.NewClient(dialer.DialAddress(address),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dialer.ContextDialer))
	if err != nil {
		return nil, errors.Wrapf(err, "cannot use the address %s", address)
	}
	return &client{conn: conn, api: introspection.NewIntrospectionClient(conn)}, nil
}

func (c *client) close() { _ = c.conn.Close() }

func (c *client) ask(ctx context.Context, question, answer any) error {
	q, err := typeurl.MarshalAny(question)
	if err != nil {
		return errors.Wrap(err, "cannot encode the question")
	}
	r, err := c.api.PluginInfo(ctx, &introspection.PluginInfoRequest{
		Type: plugins.RuntimePluginV2.String(), ID: "task",
		Options: &anypb.Any{TypeUrl: q.GetTypeUrl(), Value: q.GetValue()},
	})
	if err != nil {
		return classify(errgrpc.ToNative(err), question)
	}
	return errors.Wrap(typeurl.UnmarshalTo(r.GetExtra(), answer), "cannot read the daemon's answer")
}

// classify tells the answers of a daemon that does not know the question from those of one that does. A daemon that has
// no struct for the type says so in an error of no class, whose text is typeurl's; containerd's own runtime says
// NotImplemented of what it does not answer.
func classify(err error, question any) error {
	url, uerr := typeurl.TypeURL(question)
	if uerr != nil {
		return err
	}
	unknown := fmt.Sprintf("type with url %s", url)
	if strings.Contains(err.Error(), unknown) || errdefs.IsNotImplemented(err) {
		return errors.Wrap(errdefs.ErrNotImplemented, errStock.Error())
	}
	return err
}

// exitError gives an error its exit code.
func exitError(err error) error {
	if err == nil {
		return nil
	}
	code, text := ExitProblem, err.Error()
	switch {
	case errdefs.IsNotFound(err):
		code = ExitNotFound
	case errdefs.IsNotImplemented(err):
		code, text = ExitUnavailable, errStock.Error()
	case errdefs.IsUnavailable(err), errdefs.IsDeadlineExceeded(err), errors.Is(err, context.DeadlineExceeded):
		code = ExitUnavailable
	case errdefs.IsFailedPrecondition(err):
		code = ExitUnsupported
	case errdefs.IsInvalidArgument(err):
		code = ExitUsage
	}
	return cli.Exit("containerd shims: "+escape(text), code)
}
