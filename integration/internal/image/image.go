// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Package image builds the one OCI image that the tests and the demo run:
// busybox, its applets as links, and the few files that a container expects.
// The same busybox always gives the same bytes. Nothing is pulled.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
)

// nameAnnotation is what containerd's import takes for the image's name.
const nameAnnotation = "io.containerd.image.name"

// Write writes the image as an OCI layout in a tar stream, under the given
// name. busybox is the path of a statically linked one.
func Write(w io.Writer, name, busybox string) error {
	layer, err := layer(busybox)
	if err != nil {
		return err
	}
	a := &archive{tw: tar.NewWriter(w)}
	layerDesc := a.blob(v1.MediaTypeImageLayer, layer)
	configDesc := a.json(v1.MediaTypeImageConfig, v1.Image{
		Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config: v1.ImageConfig{
			// Sleeping makes it a pause image, too.
			Env: []string{"PATH=/bin"}, Cmd: []string{"sleep", "1000000000"}, WorkingDir: "/",
		},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{layerDesc.Digest}},
	})
	manifest := a.json(v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    configDesc,
		Layers:    []v1.Descriptor{layerDesc},
	})
	manifest.Platform = &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	manifest.Annotations = map[string]string{nameAnnotation: name}
	a.file("index.json", 0o644, marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{manifest},
	}))
	a.file(v1.ImageLayoutFile, 0o644, marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion}))
	return errors.Wrap(a.close(), "cannot write the image")
}

// layer is the root file system as an uncompressed tar stream.
func layer(busybox string) ([]byte, error) {
	binary, err := os.ReadFile(busybox)
	if err != nil {
		return nil, errors.Wrap(err, "cannot read busybox")
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, errors.Wrapf(err, "cannot list the applets of %s", busybox)
	}
	var buf bytes.Buffer
	a := &archive{tw: tar.NewWriter(&buf)}
	for _, dir := range []string{"bin/", "dev/", "etc/", "mnt/", "proc/", "root/", "run/", "sys/", "tmp/", "var/"} {
		a.header(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755})
	}
	a.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"))
	a.file("etc/group", 0o644, []byte("root:x:0:\nnobody:x:65534:\n"))
	a.file("bin/busybox", 0o755, binary)
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			a.header(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777})
		}
	}
	if err := a.close(); err != nil {
		return nil, errors.Wrap(err, "cannot write the layer")
	}
	return buf.Bytes(), nil
}

// archive is a tar stream that remembers its first error.
type archive struct {
	tw  *tar.Writer
	err error
}

func (a *archive) header(h *tar.Header) {
	if a.err == nil {
		h.ModTime = time.Unix(0, 0)
		a.err = a.tw.WriteHeader(h)
	}
}

func (a *archive) file(name string, mode int64, data []byte) {
	a.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))})
	if a.err == nil {
		_, a.err = a.tw.Write(data)
	}
}

func (a *archive) blob(mediaType string, data []byte) v1.Descriptor {
	sum := sha256.Sum256(data)
	dgst := digest.NewDigestFromBytes(digest.SHA256, sum[:])
	a.file("blobs/sha256/"+dgst.Encoded(), 0o644, data)
	return v1.Descriptor{MediaType: mediaType, Digest: dgst, Size: int64(len(data))}
}

func (a *archive) json(mediaType string, v any) v1.Descriptor {
	return a.blob(mediaType, marshal(v))
}

func (a *archive) close() error {
	if a.err != nil {
		return a.err
	}
	return a.tw.Close()
}

func marshal(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		// Only the structs above come here, and they all marshal.
		panic(err)
	}
	return data
}
