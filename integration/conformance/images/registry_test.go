// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"
)

// parts are made of a script that stands for busybox.
func parts(t *testing.T) *Parts {
	t.Helper()
	busybox := filepath.Join(t.TempDir(), "busybox")
	require.NoError(t, os.WriteFile(busybox, []byte("#!/bin/sh\necho busybox; echo nc; echo ls\n"), 0o755))
	p, err := NewParts(Programs{Busybox: busybox, Guest: busybox})
	require.NoError(t, err)
	return p
}

func TestEveryImageIsServedUnderEachOfItsNames(t *testing.T) {
	p := parts(t)
	r := NewRegistry()
	require.NoError(t, r.Add(p.All()...))
	for _, i := range p.All() {
		for _, n := range i.Names {
			ref, err := name.ParseReference(n)
			require.NoError(t, err)
			img, err := remote.Image(ref, remote.WithTransport(r))
			require.NoError(t, err, n)
			layers, err := img.Layers()
			require.NoError(t, err, n)
			for _, l := range layers {
				rc, err := l.Uncompressed()
				require.NoError(t, err, n)
				_, err = io.Copy(io.Discard, rc)
				require.NoError(t, err, n)
			}
		}
	}
}

func TestTheSameProgramsGiveTheSameBytes(t *testing.T) {
	p := parts(t)
	ref, err := name.ParseReference("registry.k8s.io/pause:3.10.2")
	require.NoError(t, err)
	var digests []string
	for range 2 {
		r := NewRegistry()
		require.NoError(t, r.Add(p.All()...))
		desc, err := remote.Head(ref, remote.WithTransport(r))
		require.NoError(t, err)
		digests = append(digests, desc.Digest.String())
	}
	require.Equal(t, digests[0], digests[1])
}

func TestHostsHaveRepositoriesOfTheirOwnAndMissesAreTold(t *testing.T) {
	p := parts(t)
	r := NewRegistry()
	require.NoError(t, r.Add(p.Marked("a", "one.example/image:latest"), p.Marked("b", "two.example/image:latest")))
	r.Handle("web.example", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_,
			_ = io.WriteString(w, "web")
	}))
	var missing []string
	r.Missing = func(url string) { missing = append(missing, url) }
	id, err := NewIdentity([]string{"one.example", "three.example", "web.example"})
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(id.Certificate))
	l, err := r.listen("127.0.0.1:0", id)
	require.NoError(t, err)
	defer l.Close()

	get := func(host, path string) (int, string) {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: host},
			DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+l.Addr().String()+path, nil)
		require.NoError(t, err)
		req.Host = host
		resp, err := client.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	status, one := get("one.example", "/v2/image/manifests/latest")
	require.Equal(t, http.StatusOK, status)
	require.NotEmpty(t, one)
	status, _ = get("three.example", "/v2/image/manifests/latest")
	require.Equal(t, http.StatusNotFound, status)
	require.Equal(t, []string{"three.example/v2/image/manifests/latest"}, missing)
	_, body := get("web.example", "/any")
	require.Equal(t, "web", body)
}

func TestHosts(t *testing.T) {
	require.Equal(t, []string{"a.example", "docker.io", "index.docker.io", "registry-1.docker.io"},
		Hosts([]Image{{Names: []string{"docker.io/library/x:1", "a.example/y:1"}}}))
}
