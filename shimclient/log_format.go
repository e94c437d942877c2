// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimclient

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/containerd/log"
)

// lineField is one field that each line of a log gets.
type lineField struct{ key, value string }

type lineFields []lineField

// newLineFields sorts the fields by name.
func newLineFields(fields log.Fields) lineFields {
	all := make(lineFields, 0, len(fields))
	for key, value := range fields {
		all = append(all, lineField{key, fmt.Sprint(value)})
	}
	slices.SortFunc(all, func(a, b lineField) int { return strings.Compare(a.key, b.key) })
	return all
}

// addTo returns the line with the fields: in the object where the line is one in
// JSON, and else behind it as KEY=VALUE, which keeps logfmt what it is and other
// text readable.
func (f lineFields) addTo(line []byte) []byte {
	if object := f.addToJSON(line); object != nil {
		return object
	}
	out := append(make([]byte, 0, len(line)+64*len(f)), line...)
	for _, field := range f {
		out = append(out, ' ')
		out = append(out, field.key...)
		out = append(out, '=')
		out = append(out, logfmtValue(field.value)...)
	}
	return out
}

// addToJSON is nil if the line is no JSON object. A field that the object has
// already is added under the name fields.NAME, as logrus does with clashes.
func (f lineFields) addToJSON(line []byte) []byte {
	trimmed := bytes.Trim(line, " \t\r\n")
	if len(trimmed) < 2 || trimmed[0] != '{' || trimmed[len(trimmed)-1] != '}' {
		return nil
	}
	var has map[string]json.RawMessage
	if json.Unmarshal(trimmed, &has) != nil {
		return nil
	}
	out := bytes.TrimRight(trimmed[:len(trimmed)-1], " \t")
	out = append(make([]byte, 0, len(line)+64*len(f)), out...)
	for i, field := range f {
		if i > 0 || len(has) > 0 {
			out = append(out, ',')
		}
		key := field.key
		if _, clash := has[key]; clash {
			key = "fields." + key
		}
		out = append(out, jsonString(key)...)
		out = append(out, ':')
		out = append(out, jsonString(field.value)...)
	}
	return append(out, '}')
}

func jsonString(s string) []byte {
	b, _ := json.Marshal(s) // a string cannot fail
	return b
}

// logfmtValue quotes a value where logrus' text format does.
func logfmtValue(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("-._/@^+", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return strconv.Quote(s)
}

// escapeControls makes a line harmless for the terminal that shows it: the bytes of a container may get into its shim's
// log, and an escape sequence there would be obeyed. Tabs stay.
func escapeControls(line []byte) []byte {
	control := func(r rune) bool { return r != '\t' && (r < ' ' || r >= 0x7f && r < 0xa0) }
	if bytes.IndexFunc(line, control) < 0 {
		return line
	}
	out := make([]byte, 0, len(line)+16)
	for len(line) > 0 {
		r, n := utf8.DecodeRune(line)
		if control(r) {
			out = append(out, strings.Trim(strconv.QuoteRuneToASCII(r), "'")...)
		} else {
			out = append(out, line[:n]...)
		}
		line = line[n:]
	}
	return out
}
