// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"
)

// stamp is the form of times in the journal, the daemon's own in UTC.
const stamp = "15:04:05.000000"

// journal is what happened since the last clearing.
type journal struct {
	jmu     sync.Mutex
	entries []entry
	blamed  map[*slot]bool
	file    *os.File // nil: the journal is not kept
}

type entry struct {
	at   time.Time
	s    *slot // nil: about all
	text string
}

func (e entry) String() string {
	id := "  "
	if e.s != nil {
		id = e.s.id
	}
	return fmt.Sprintf("%s %-3s %s", e.at.UTC().Format(stamp), id, e.text)
}

func (j *journal) note(s *slot, format string, args ...any) {
	j.jmu.Lock()
	defer j.jmu.Unlock()
	e := entry{time.Now(), s, fmt.Sprintf(format, args...)}
	j.entries = append(j.entries, e)
	if j.file != nil {
		fmt.Fprintln(j.file, e)
	}
}

func (c *chaos) noteOf(id, format string, args ...any) {
	if s := c.slotOf(id); s != nil {
		c.note(s, format, args...)
	}
}

// forget drops what is older than two clearings.
func (j *journal) forget(before time.Time) {
	j.jmu.Lock()
	defer j.jmu.Unlock()
	for i, e := range j.entries {
		if e.at.After(before) {
			j.entries = append([]entry(nil), j.entries[i:]...)
			return
		}
	}
}

// fail notes a violation.
func (c *chaos) fail(s *slot, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.note(s, "VIOLATION: %s", text)
	c.jmu.Lock()
	if c.blamed == nil {
		c.blamed = map[*slot]bool{}
	}
	c.blamed[s] = true
	c.jmu.Unlock()
	id := "the daemon"
	if s != nil {
		id = s.id
	}
	c.t.Errorf("VIOLATION of %s, seed %d, round %d: %s", id, c.seed, c.round, text)
}

// report prints what is known about a violation.
func (c *chaos) report() {
	if !c.t.Failed() {
		c.keep(c.Log())
		return
	}
	c.t.Logf("chaos: seed %d, round %d\n%s", c.seed, c.round, c.counts.String())
	log := c.Log()
	c.keep(log)
	c.jmu.Lock()
	defer c.jmu.Unlock()
	for s := range c.blamed {
		if s == nil {
			continue
		}
		var lines []string
		for _, e := range c.entries {
			if e.s == nil || e.s == s {
				lines = append(lines, e.String())
			}
		}
		c.t.Logf("what happened to %s (%s):\n%s", s.id, s.fake, strings.Join(tail(lines, 150), "\n"))
		lines = nil
		for _, l := range strings.Split(log, "\n") {
			if mentions(l, s.id) {
				lines = append(lines, l)
			}
		}
		c.t.Logf("what the daemon says of %s:\n%s", s.id, strings.Join(tail(lines, 60), "\n"))
	}
}

// openJournal makes the file where the journal is kept, if the flag says so.
func (c *chaos) openJournal() {
	if *chaosKeep == "" {
		return
	}
	require.NoError(c.t, os.MkdirAll(*chaosKeep, 0o755))
	f, err := os.Create(c.kept("journal"))
	require.NoError(c.t, err)
	c.file = f
	c.t.Cleanup(func() { f.Close() })
}

func (c *chaos) kept(what string) string {
	return filepath.Join(*chaosKeep, fmt.Sprintf("chaos-%d.%s", c.seed, what))
}

// keep leaves the daemon's log where the flag says.
func (c *chaos) keep(log string) {
	if *chaosKeep == "" {
		return
	}
	if err := os.WriteFile(c.kept("log"), []byte(log), 0o644); err != nil {
		c.t.Logf("cannot keep the daemon's log: %v", err)
	}
}

func tail(lines []string, n int) []string { return lines[max(0, len(lines)-n):] }

// mentions tells whether a line of the daemon's log is about an id.
func mentions(line, id string) bool {
	for _, form := range []string{"id=%s ", "id=%s\n", "/%s ", "/%s/", "/%s:", "task %s", `"%s"`} {
		if strings.Contains(line+" ", fmt.Sprintf(form, id)) {
			return true
		}
	}
	return false
}
