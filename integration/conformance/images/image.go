// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package images makes the images that the suites pull, and serves them.
//
// Everything in them is busybox, and one small program of this project. They have the names that the suites know, and
// as much of the content as a suite looks at. The same programs always give the same bytes. Nothing is pulled.
package images

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/pkg/errors"
)

// Image is one image, by whatever names it is pulled.
type Image struct {
	// Names are whole references, with host and tag: docker.io/library/busybox:latest.
	Names []string
	// Layers are its layers, the lowest first.
	Layers []Layer
	// Config is what it runs, and how.
	Config v1.Config
	// Platforms are those of the index, where it is one. The first that is not this machine's and all further ones
	// have a layer of their own.
	Platforms []v1.Platform
}

// Layer is what one layer holds, in order: a directory goes before what is in it.
type Layer []File

// File is one entry of a layer. One with neither Data nor Link is a directory if its path ends with a slash, else an
// empty file.
type File struct {
	Path     string
	Mode     int64
	UID, GID int
	Data     []byte
	// Link is what a symbolic link says, or with Hard the other name of the same file in the layer.
	Link string
	Hard bool
}

func (f File) header() *tar.Header {
	h := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: f.Mode, Uid: f.UID, Gid: f.GID,
		ModTime: time.Unix(0, 0)}
	switch {
	case f.Hard:
		h.Typeflag, h.Linkname = tar.TypeLink, f.Link
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
	case strings.HasSuffix(f.Path, "/"):
		h.Typeflag = tar.TypeDir
	default:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(f.Data))
	}
	if h.Mode == 0 {
		h.Mode = 0o755
	}
	return h
}

func (l Layer) build() (v1.Layer, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range l {
		if err := tw.WriteHeader(f.header()); err != nil {
			return nil, errors.Wrapf(err, "cannot write %s into a layer", f.Path)
		}
		if _, err := tw.Write(f.Data); err != nil {
			return nil, errors.Wrapf(err, "cannot write %s into a layer", f.Path)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, errors.Wrap(err, "cannot end a layer")
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	})
	return layer, errors.Wrap(err, "cannot make a layer")
}

// layers remembers what was built: images share layers.
type layers map[*File]v1.Layer

func (b layers) get(l Layer) (v1.Layer, error) {
	if built, ok := b[&l[0]]; ok {
		return built, nil
	}
	built, err := l.build()
	if err == nil {
		b[&l[0]] = built
	}
	return built, err
}

// image builds the image of one platform.
func (b layers) image(i Image, p v1.Platform, more ...Layer) (v1.Image, error) {
	img := v1.Image(empty.Image)
	for _, l := range append(i.Layers[:len(i.Layers):len(i.Layers)], more...) {
		layer, err := b.get(l)
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return nil, errors.Wrap(err, "cannot add a layer")
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, errors.Wrap(err, "cannot read an image's config")
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant, config.Config = p.OS, p.Architecture, p.Variant, i.Config
	img, err = mutate.ConfigFile(img, config)
	return img, errors.Wrap(err, "cannot set an image's config")
}

// index builds the index of all platforms. A foreign one has a layer of its own, which no other image has.
func (b layers) index(i Image) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.DockerManifestList)
	for n, p := range i.Platforms {
		var more []Layer
		if n > 0 {
			more = []Layer{{{Path: "platform", Mode: 0o644, Data: []byte(i.Names[0] + " " + p.String() + "\n")}}}
		}
		img, err := b.image(i, p, more...)
		if err != nil {
			return nil, err
		}
		desc, err := partial.Descriptor(img)
		if err != nil {
			return nil, errors.Wrap(err, "cannot describe an image")
		}
		desc.Platform = &p
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: *desc})
	}
	return index, nil
}
