// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/pkg/errors"
)

// Registry is every registry that the suites know, at one address. Each host has repositories of its own. Its methods
// may be called from several goroutines, but for Add.
type Registry struct {
	// Missing is told of each manifest that was asked for and does not exist.
	Missing func(url string)

	mu    sync.Mutex
	hosts map[string]http.Handler
	built layers
}

// NewRegistry is a registry without images.
func NewRegistry() *Registry {
	return &Registry{hosts: map[string]http.Handler{}, built: layers{}}
}

// ServeHTTP serves the host that the request names.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	host := req.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	r.host(host).ServeHTTP(&watched{ResponseWriter: w, found: func(status int) {
		if status == http.StatusNotFound && r.Missing != nil && strings.Contains(req.URL.Path, "/manifests/") {
			r.Missing(host + req.URL.Path)
		}
	}}, req)
}

// watched tells the status of a response.
type watched struct {
	http.ResponseWriter
	found func(status int)
}

func (w *watched) WriteHeader(status int) {
	w.found(status)
	w.ResponseWriter.WriteHeader(status)
}

func (r *Registry) host(name string) http.Handler {
	if strings.HasSuffix(name, ".docker.io") {
		name = "docker.io"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hosts[name] == nil {
		r.hosts[name] = registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))
	}
	return r.hosts[name]
}

// Handle has another handler answer for a host.
func (r *Registry) Handle(host string, h http.Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hosts[host] = h
}

// RoundTrip lets the library push without a network.
func (r *Registry) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body == nil {
		req.Body = io.NopCloser(bytes.NewReader(nil))
	}
	rec := httptest.NewRecorder()
	r.host(req.URL.Hostname()).ServeHTTP(rec, req)
	resp := rec.Result()
	resp.Request = req
	return resp, nil
}

// Add builds the images and makes them available.
func (r *Registry) Add(list ...Image) error {
	for _, i := range list {
		if err := r.add(i); err != nil {
			return errors.Wrapf(err, "cannot serve the image %s", i.Names[0])
		}
	}
	return nil
}

func (r *Registry) add(i Image) error {
	var img v1.Image
	var index v1.ImageIndex
	var err error
	if len(i.Platforms) > 0 {
		index, err = r.built.index(i)
	} else {
		img, err = r.built.image(i, v1.Platform{OS: "linux", Architecture: runtime.GOARCH})
	}
	if err != nil {
		return err
	}
	for _, n := range i.Names {
		ref, err := name.ParseReference(n)
		if err != nil {
			return errors.Wrap(err, "cannot read its name")
		}
		if index != nil {
			err = remote.WriteIndex(ref, index, remote.WithTransport(r))
		} else {
			err = remote.Write(ref, img, remote.WithTransport(r))
		}
		if err != nil {
			return errors.Wrap(err, "cannot push it")
		}
	}
	return nil
}

// Hosts are the names under which programs look for the images, sorted.
func Hosts(list []Image) []string {
	set := map[string]bool{}
	for _, i := range list {
		for _, n := range i.Names {
			host, _, _ := strings.Cut(n, "/")
			set[host] = true
			if host == "docker.io" {
				set["registry-1.docker.io"], set["index.docker.io"] = true, true
			}
		}
	}
	var hosts []string
	for h := range set {
		hosts = append(hosts, h)
	}
	sort.Strings(hosts)
	return hosts
}

// Identity is a certificate that signs itself, for some hosts.
type Identity struct {
	// Certificate is PEM, to be trusted; Key is PEM, too.
	Certificate, Key []byte
}

// NewIdentity makes one, good for two days.
func NewIdentity(hosts []string) (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, errors.Wrap(err, "cannot make a key")
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Shimyard conformance"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    append([]string{"localhost"}, hosts...),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, errors.Wrap(err, "cannot make a certificate")
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, errors.Wrap(err, "cannot write a key")
	}
	return &Identity{
		Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		Key:         pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
	}, nil
}

// Serve serves over HTTPS at the address until the process ends. It returns once it listens.
func (r *Registry) Serve(address string, id *Identity) error {
	_, err := r.listen(address, id)
	return err
}

func (r *Registry) listen(address string, id *Identity) (net.Listener, error) {
	pair, err := tls.X509KeyPair(id.Certificate, id.Key)
	if err != nil {
		return nil, errors.Wrap(err, "cannot use the registry's certificate")
	}
	l, err := tls.Listen("tcp", address, &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		return nil, errors.Wrap(err, "cannot listen for the registry")
	}
	go http.Serve(l, r) //nolint:errcheck // it ends with the listener
	return l, nil
}
