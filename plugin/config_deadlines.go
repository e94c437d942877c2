// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	sandbox "github.com/containerd/containerd/api/runtime/sandbox/v1"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/shimclient"
)

// parseDeadlines reads a section of deadlines. A zero is for a method that is left with its caller's deadline; nil
// when there are none.
func parseDeadlines(section map[string]string) (shimclient.Deadlines, error) {
	var out shimclient.Deadlines
	methods := shimMethods()
	for _, method := range slices.Sorted(maps.Keys(section)) {
		if method == "Wait" || method == "WaitSandbox" {
			return nil,
				errors.Errorf("key deadlines.%s: a Wait lasts as long as its container, it has no deadline; remove the key",
					method)
		}
		if !slices.Contains(methods, method) {
			hint := "known are " + strings.Join(methods, ", ")
			if near := nearest(method, methods); near != "" {
				hint = "did you mean " + near + "?"
			}
			return nil, errors.Errorf("key deadlines.%s: neither the Task nor the Sandbox API has such a method, %s",
				method, hint)
		}
		d, err := time.ParseDuration(section[method])
		switch {
		case err != nil:
			return nil, errors.Errorf("key deadlines.%s: %q is not a duration such as \"2s\" or \"500ms\"", method,
				section[method])
		case d < 0:
			return nil, errors.Errorf("key deadlines.%s: %q is negative; \"0s\" means none", method, section[method])
		case d == 0 && slices.Contains(shimclient.OwnCalls, method):
			return nil, errors.Errorf("key deadlines.%s: %q would bound nothing where it is called without a caller; "+
				"set how long it may take", method, section[method])
		}
		if out == nil {
			out = make(shimclient.Deadlines)
		}
		out[method] = d
	}
	return out, nil
}

// shimMethods are the methods of the Task and the Sandbox API in alphabetical order.
func shimMethods() []string {
	var names []string
	apis := []reflect.Type{reflect.TypeFor[task.TTRPCTaskService](), reflect.TypeFor[sandbox.TTRPCSandboxService]()}
	for _, api := range apis {
		for m := range api.Methods() {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}
