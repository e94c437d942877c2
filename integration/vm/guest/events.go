// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"github.com/pkg/errors"

	_ "github.com/containerd/containerd/api/events" // what typeurl makes of the events
)

// follow prints a namespace's events, a line each, and comes back to a daemon that was started again at once: a client that
// is started anew may need longer on a slow machine than the daemon waits for its subscribers.
func follow(args []string) error {
	namespace, err := argument(args, 0)
	if err != nil {
		return err
	}
	ctx := namespaces.WithNamespace(context.Background(), namespace)
	for {
		fmt.Println("gone:", followOnce(ctx, namespace))
		for {
			conn, err := net.Dial("unix", address)
			if err == nil {
				conn.Close()
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// followOnce prints until the daemon goes away.
func followOnce(ctx context.Context, namespace string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, err := containerd.New(address)
	if err != nil {
		return errors.Wrap(err, "cannot reach the daemon")
	}
	defer client.Close()
	if _, err := client.Version(ctx); err != nil { // a subscription does not say when it has been made
		return errors.Wrap(err, "cannot ask the daemon")
	}
	told, failed := client.Subscribe(ctx, "namespace=="+namespace)
	fmt.Println("here")
	for {
		select {
		case err := <-failed:
			return errors.Wrap(err, "the subscription has ended")
		case e := <-told:
			if err := printEvent(e); err != nil {
				return err
			}
		}
	}
}

func printEvent(e *events.Envelope) error {
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		return errors.Wrapf(err, "cannot decode an event of %s", e.Topic)
	}
	data, err := json.Marshal(v)
	if err != nil {
		return errors.Wrapf(err, "cannot print an event of %s", e.Topic)
	}
	fmt.Println(e.Topic, string(data))
	return nil
}
