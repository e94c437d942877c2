// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package warm

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var allStates = []State{Entered, Idle, Serving, Retired, Ending}

// TestTransitions tries every change of the state against the table, and holds DESIGN.md to the table. What it prints
// when they differ is what belongs there.
func TestTransitions(t *testing.T) {
	var table strings.Builder
	table.WriteString("| warm shim | may become |\n|---|---|\n")
	for _, from := range allStates {
		require.Contains(t, allowed, from)
		var next []string
		for _, to := range allStates {
			o := newOwner(t, Config[string]{})
			e := o.Enter("w", "k", limits)
			if from == Idle {
				o.Put(e, 0)
			}
			e.state = from
			if from == to || slices.Contains(allowed[from], to) {
				require.NotPanics(t, func() { e.becomeLocked(to) })
				require.Equal(t, to, e.state)
			} else {
				require.Panics(t, func() { e.becomeLocked(to) }, "%s to %s", from, to)
			}
			if from != to && slices.Contains(allowed[from], to) {
				next = append(next, to.String())
			}
		}
		fmt.Fprintf(&table, "| %s | %s |\n", from, strings.Join(next, ", "))
	}
	page, err := os.ReadFile("../../DESIGN.md")
	require.NoError(t, err)
	require.Contains(t, string(page), table.String(), "put this into manager/DESIGN.md:\n%s", &table)
}

// TestEvents goes through every event in every state in which the owner may have it.
func TestEvents(t *testing.T) {
	states := map[string]func(o *owner, e entry){
		"entered":         func(*owner, entry) {},
		"idle":            func(o *owner, e entry) { o.Put(e, 0) },
		"serving":         func(o *owner, e entry) { o.Put(e, 1) },
		"leaving":         func(o *owner, e entry) { o.Put(e, 1); require.True(o, o.Keep(e)) },
		"retired":         func(o *owner, e entry) { o.Put(e, 1); o.Distrust(e) },
		"leaving retired": func(o *owner, e entry) { o.Put(e, 1); require.True(o, o.Keep(e)); o.Distrust(e) },
		"ending":          func(o *owner, e entry) { o.Put(e, 1); o.Distrust(e); o.Ending(e) },
	}
	none := func() int { return 0 }
	events := map[string]func(o *owner, e entry) any{
		"put idle":    func(o *owner, e entry) any { o.Put(e, 0); return nil },
		"put serving": func(o *owner, e entry) any { o.Put(e, 1); return nil },
		"take":        func(o *owner, e entry) any { got, _ := o.Take("k"); return got == e },
		"give up":     func(o *owner, e entry) any { o.GiveUp(e); return nil },
		"keep":        func(o *owner, e entry) any { return o.Keep(e) },
		"back":        func(o *owner, e entry) any { return o.Back(e, none) },
		"back, another is in it": func(o *owner, e entry) any {
			return o.Back(e, func() int { return 1 })
		},
		"distrust": func(o *owner, e entry) any { o.Distrust(e); return nil },
		"died":     func(o *owner, e entry) any { return o.Died(e) },
		"ending":   func(o *owner, e entry) any { o.Ending(e); return nil },
		"expire":   func(o *owner, e entry) any { o.expire(e); return nil },
	}
	type want struct {
		state  State
		answer any
		why    string // "" where it is not retired by this
		ends   bool
		place  bool
	}
	for from, rows := range map[string]map[string]want{
		"entered": {
			"put idle": {state: Idle, place: true}, "put serving": {state: Serving},
			"take":     {state: Entered, answer: false},
			"distrust": {state: Retired, why: WhyDistrusted}, "died": {state: Retired, answer: false, why: WhyDied},
			"ending": {state: Ending, why: WhyDied}, "expire": {state: Entered},
		},
		"idle": {
			"take": {state: Serving, answer: true}, "distrust": {state: Retired, why: WhyDistrusted, ends: true},
			"died": {state: Retired, answer: false, why: WhyDied}, "ending": {state: Ending, why: WhyDied},
			"expire": {state: Idle, place: true},
		},
		"serving": {
			"take": {state: Serving, answer: false}, "give up": {state: Retired, why: WhyDistrusted, ends: true},
			"keep": {state: Serving, answer: true, place: true}, "distrust": {state: Retired, why: WhyDistrusted},
			"died": {state: Retired, answer: false, why: WhyDied}, "ending": {state: Ending, why: WhyDied},
			"expire": {state: Serving},
		},
		"leaving": {
			"take": {state: Serving, answer: false, place: true}, "back": {state: Idle, answer: false, place: true},
			"back, another is in it": {state: Retired, answer: false, why: WhyDistrusted},
			"distrust":               {state: Retired, why: WhyDistrusted},
			"died":                   {state: Retired, answer: false, why: WhyDied},
			"expire":                 {state: Serving, place: true},
		},
		"retired": {
			"put idle": {state: Retired, ends: true}, "put serving": {state: Retired},
			"take":    {state: Retired, answer: false},
			"give up": {state: Retired, ends: true}, "keep": {state: Retired, answer: false},
			"distrust": {state: Retired},
			"died":     {state: Retired, answer: false}, "ending": {state: Ending}, "expire": {state: Retired},
		},
		"leaving retired": {
			"back": {state: Retired, answer: true}, "back, another is in it": {state: Retired, answer: false},
			"died": {state: Retired, answer: false}, "ending": {state: Ending},
		},
		"ending": {
			"take": {state: Ending, answer: false}, "give up": {state: Ending, ends: true},
			"keep":     {state: Ending, answer: false},
			"distrust": {state: Ending}, "died": {state: Ending, answer: true}, "ending": {state: Ending},
			"expire": {state: Ending},
		},
	} {
		for event, want := range rows {
			t.Run(from+": "+event, func(t *testing.T) {
				inBubble(t, Config[string]{}, func(o *owner) {
					e := o.Enter("w", "k", limits)
					states[from](o, e)
					o.asked()
					require.Equal(o, want.answer, events[event](o, e))
					require.Equal(o, want.state, o.stateOf(e))
					ended, why := o.asked()
					require.Equal(o, want.ends, slices.Equal([]string{"w"}, ended), "ended: %v", ended)
					require.Equal(o, want.why, strings.Join(why, ","))
					require.Equal(o, want.place, o.taken() == 1)
				})
			})
		}
	}
}
