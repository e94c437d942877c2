// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import "testing"

func BenchmarkCreateRecordRemove(b *testing.B) {
	l := newLayout(b)
	for b.Loop() {
		bundle, err := l.Create(testNS, testID, CreateOptions{Spec: []byte("{}")})
		if err != nil {
			b.Fatal(err)
		}
		if err := bundle.WriteRecord(fullRecord()); err != nil {
			b.Fatal(err)
		}
		if err := bundle.Remove(); err != nil {
			b.Fatal(err)
		}
	}
}

// A create writes the record of its task four times.
func BenchmarkWriteRecord(b *testing.B) {
	bundle, err := newLayout(b).Create(testNS, testID, CreateOptions{Spec: []byte("{}")})
	if err != nil {
		b.Fatal(err)
	}
	record := fullRecord()
	for b.Loop() {
		if err := bundle.WriteRecord(record); err != nil {
			b.Fatal(err)
		}
	}
}
