// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Command testimage writes the busybox image that the tests and the demo run,
// as an OCI layout in a tar file that `ctr images import` takes.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/internal/image"
	"github.com/shimyard/shimyard/integration/internal/tools"
)

func main() {
	name := flag.String("name", "localhost/busybox:latest", "name of the image")
	busybox := flag.String("busybox", "", "statically linked busybox (default: the machine's, else Debian's)")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: testimage [-name NAME] [-busybox PATH] FILE.tar")
		os.Exit(2)
	}
	if err := write(flag.Arg(0), *name, *busybox); err != nil {
		fmt.Fprintln(os.Stderr, "testimage:", err)
		os.Exit(1)
	}
}

func write(path, name, busybox string) (err error) {
	if busybox == "" {
		t, err := tools.New(os.Stderr)
		if err != nil {
			return err
		}
		if busybox, err = t.Busybox(); err != nil {
			return err
		}
	}
	f, err := os.Create(path)
	if err != nil {
		return errors.Wrap(err, "cannot create the image file")
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = errors.Wrap(cerr, "cannot write the image file")
		}
	}()
	return image.Write(f, name, busybox)
}
