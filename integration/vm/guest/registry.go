// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
)

// registryAddress is where the registry listens, on plain HTTP.
const registryAddress = "127.0.0.1:5000"

// registry serves one image, an OCI layout in a tar file, under every name and tag, for as long as the machine runs.
func registry(args []string) error {
	path, err := argument(args, 0)
	if err != nil {
		return err
	}
	s, err := readStore(path)
	if err != nil {
		return err
	}
	return errors.Wrap(http.ListenAndServe(registryAddress, s), "cannot serve the registry")
}

// store holds the image's blobs by digest.
type store struct {
	blobs    map[string][]byte
	manifest v1.Descriptor
}

func readStore(file string) (*store, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, errors.Wrap(err, "cannot open the image")
	}
	defer f.Close()
	s := &store{blobs: map[string][]byte{}}
	var index v1.Index
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, errors.Wrap(err, "cannot read the image")
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			return nil, errors.Wrap(err, "cannot read the image")
		}
		switch dir, name := path.Split(h.Name); {
		case h.Name == v1.ImageIndexFile:
			if err := json.Unmarshal(data, &index); err != nil {
				return nil, errors.Wrap(err, "cannot read the image's index")
			}
		case dir == "blobs/sha256/" && name != "":
			s.blobs["sha256:"+name] = data
		}
	}
	if len(index.Manifests) != 1 {
		return nil, errors.Errorf("%s holds %d images, not one", file, len(index.Manifests))
	}
	s.manifest = index.Manifests[0]
	return s, nil
}

// ServeHTTP answers what a pull asks for: /v2/NAME/manifests/TAG-OR-DIGEST and /v2/NAME/blobs/DIGEST.
func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	dir, last := path.Split(r.URL.Path)
	digest, kind := last, "application/octet-stream"
	switch {
	case r.URL.Path == "/v2/":
		return
	case strings.HasSuffix(dir, "/manifests/"):
		kind = s.manifest.MediaType
		if !strings.HasPrefix(last, "sha256:") {
			digest = s.manifest.Digest.String()
		}
	}
	blob, ok := s.blobs[digest]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(blob) // a client that has gone misses nothing
	}
}
