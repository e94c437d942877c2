// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// usage is what the daemon's process holds.
type usage struct {
	binary     string
	fds        []string // what each refers to, sorted
	goroutines int
	profile    string
}

// Baseline remembers how many file descriptors and goroutines the daemon has,
// once it has come to rest. Leftovers compares with it. Call it after a first
// container has come and gone, as some plugins start on first use.
func (d *Daemon) Baseline() {
	d.tb.Helper()
	d.closeClient()
	defer func() { d.client = d.Dial() }()
	deadline := time.Now().Add(settle)
	for d.warmIdle() == shortIdle && len(d.warmShims()) > 0 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	var last *usage
	for equal := 0; equal < 3; {
		u, err := d.usage()
		require.NoError(d.tb, err)
		if last != nil && len(u.fds) == len(last.fds) && u.goroutines == last.goroutines {
			equal++
		} else {
			equal = 0
		}
		last = u
		if time.Now().After(deadline) {
			d.tb.Fatalf("the daemon does not come to rest: %d fds, %d goroutines\n%s", len(u.fds), u.goroutines,
				u.profile)
		}
		time.Sleep(20 * time.Millisecond)
	}
	d.base = last
}

// Usage returns how many file descriptors and goroutines the daemon has now.
func (d *Daemon) Usage() (fds, goroutines int) {
	u, err := d.usage()
	require.NoError(d.tb, err)
	return len(u.fds), u.goroutines
}

// Inside counts the goroutines of the daemon that are in a function of which
// this is a part of the name.
func (d *Daemon) Inside(function string) int {
	d.tb.Helper()
	profile, err := d.pprof("goroutine?debug=1")
	require.NoError(d.tb, err)
	count := 0
	for _, stack := range stacks(profile) {
		if strings.Contains(stack, function) {
			count++
		}
	}
	return count
}

// overUsage says what the daemon has beyond the baseline. Another binary than
// the baseline's is not compared.
func (d *Daemon) overUsage() []string {
	if d.proc == nil || d.base == nil || d.base.binary != d.opts.Binary {
		return nil
	}
	u, err := d.usage()
	if err != nil {
		return []string{err.Error()}
	}
	var left []string
	if len(u.fds) > len(d.base.fds) {
		left = append(left, fmt.Sprintf("file descriptors of the daemon: %d, not %d; new: %v", len(u.fds),
			len(d.base.fds), added(d.base.fds, u.fds)))
	}
	if u.goroutines > d.base.goroutines {
		left = append(left, fmt.Sprintf("goroutines of the daemon: %d, not %d; new:\n%s", u.goroutines,
			d.base.goroutines,
			strings.Join(added(stacks(d.base.profile), stacks(u.profile)), "\n")))
	}
	return left
}

func (d *Daemon) usage() (*usage, error) {
	u := &usage{binary: d.opts.Binary}
	// Before the profile, whose connection may not be closed in time.
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.Pid()))
	if err != nil {
		return nil, errors.Wrap(err, "cannot list file descriptors")
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil {
			continue // closed meanwhile
		}
		u.fds = append(u.fds, anonymous.ReplaceAllString(target, "$1"))
	}
	sort.Strings(u.fds)
	if u.profile, err = d.pprof("goroutine?debug=1"); err != nil {
		return nil, err
	}
	m := profileTotal.FindStringSubmatch(u.profile)
	if m == nil {
		return nil, errors.New("the goroutine profile has no total")
	}
	u.goroutines, err = strconv.Atoi(m[1])
	return u, errors.Wrap(err, "cannot read the goroutine profile")
}

var profileTotal = regexp.MustCompile(`^goroutine profile: total (\d+)`)

// pprof asks the daemon's debug socket. The connection is closed with the
// answer: it would count.
func (d *Daemon) pprof(what string) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", filepath.Join(d.Dir, "d.sock"))
		}}
	c := &http.Client{Transport: transport, Timeout: Patience}
	defer c.CloseIdleConnections()
	resp, err := c.Get("http://daemon/debug/pprof/" + what)
	if err != nil {
		return "", errors.Wrap(err, "cannot ask the daemon's debug socket")
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return string(data), errors.Wrap(err, "cannot read from the daemon's debug socket")
}

// stacks splits a profile into one line per goroutine: its functions, the
// innermost first.
func stacks(profile string) []string {
	var list []string
	_, body, _ := strings.Cut(profile, "\n")
	for _, block := range strings.Split(body, "\n\n") {
		head, _, _ := strings.Cut(block, "\n")
		var functions []string
		for _, m := range profileFrame.FindAllStringSubmatch(block, -1) {
			functions = append(functions, m[1])
		}
		n, _ := strconv.Atoi(strings.Fields(head + " 0")[0])
		for range n {
			list = append(list, strings.Join(functions, " < "))
		}
	}
	return list
}

var profileFrame = regexp.MustCompile(`(?m)^#\t0x[0-9a-f]+\t(\S+)\+0x`)

// added lists what is in after more often than in before.
func added(before, after []string) []string {
	count := map[string]int{}
	for _, s := range before {
		count[s]++
	}
	var list []string
	for _, s := range after {
		if count[s]--; count[s] < 0 {
			list = append(list, s)
		}
	}
	return list
}

var anonymous = regexp.MustCompile(`(socket|pipe|anon_inode):\[\d+\]`)
