// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Command sbom writes the CycloneDX bill of materials of a Go program: what `go version -m` knows of it, which is what
// was linked, not what a go.mod asks for. The same program always gives the same bytes.
package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/pkg/errors"
)

func main() {
	name := flag.String("name", "shimyard", "name of the product")
	version := flag.String("version", "", "version of the product")
	epoch := flag.Int64("epoch", 0, "time stamp, in seconds since 1970 (SOURCE_DATE_EPOCH)")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: sbom [-name NAME] [-version VERSION] [-epoch SECONDS] PROGRAM >FILE.cdx.json")
		os.Exit(2)
	}
	if err := write(os.Stdout, flag.Arg(0), *name, *version, time.Unix(*epoch, 0)); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func write(w io.Writer, program, name, version string, stamp time.Time) error {
	data, err := os.ReadFile(program)
	if err != nil {
		return errors.Wrap(err, "cannot read the program")
	}
	info, err := buildinfo.Read(bytes.NewReader(data))
	if err != nil {
		return errors.Wrapf(err, "cannot read what %s was built from", program)
	}
	sum := sha256.Sum256(data)
	bom := billOf(info, name, version, hex.EncodeToString(sum[:]), stamp)
	enc := cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON)
	enc.SetPretty(true)
	return errors.Wrap(enc.Encode(bom), "cannot write the bill of materials")
}

// billOf lists the modules that are linked in, and Go's own library. There is no serial number: it would have to differ
// between builds.
func billOf(info *debug.BuildInfo, name, version, sha string, stamp time.Time) *cdx.BOM {
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{
		Timestamp: stamp.UTC().Format(time.RFC3339),
		Component: &cdx.Component{
			BOMRef: name, Type: cdx.ComponentTypeApplication, Name: name, Version: version,
			Hashes:   &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: sha}},
			Licenses: &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
		},
	}
	components := []cdx.Component{library("std", info.GoVersion)}
	for _, m := range info.Deps {
		if m.Replace != nil {
			if m.Replace.Version == "" { // a directory: part of the product itself
				continue
			}
			m = m.Replace
		}
		components = append(components, library(m.Path, m.Version))
	}
	refs := make([]string, len(components))
	for i := range components {
		refs[i] = components[i].BOMRef
	}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: name, Dependencies: &refs}}
	return bom
}

func library(path, version string) cdx.Component {
	purl := "pkg:golang/" + path + "@" + version
	return cdx.Component{
		BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: purl,
		Scope: cdx.ScopeRequired,
	}
}
