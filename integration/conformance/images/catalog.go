// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/pkg/errors"
)

// Programs are what images are made of: the paths of static programs of this machine.
type Programs struct {
	Busybox string
	// Guest is cmd/guest.
	Guest string
}

// Parts are the layers that images are made of.
type Parts struct {
	busybox, guest []byte
	applets        []string
	// Base is a root file system with all of busybox, and the users of a small distribution. Its applets are hard
	// links, as in busybox's own image: to mask one must not mask all. Linked is the same with symbolic links, as in
	// Alpine's.
	Base, Linked Layer
}

// NewParts reads the programs.
func NewParts(p Programs) (*Parts, error) {
	var parts Parts
	var err error
	if parts.busybox, err = os.ReadFile(p.Busybox); err != nil {
		return nil, errors.Wrap(err, "cannot read busybox")
	}
	if parts.guest, err = os.ReadFile(p.Guest); err != nil {
		return nil, errors.Wrap(err, "cannot read the program of the images")
	}
	out, err := exec.Command(p.Busybox, "--list").Output()
	if err != nil {
		return nil, errors.Wrapf(err, "cannot list the applets of %s", p.Busybox)
	}
	parts.applets = strings.Fields(string(out))
	parts.Base, parts.Linked = parts.base(true), parts.base(false)
	return &parts, nil
}

// The users and groups that busybox's own image has. Suites rely on some of them, and on 1000 being free.
const (
	passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nbin:x:2:2:bin:/bin:/bin/false\n" +
		"sys:x:3:3:sys:/dev:/bin/false\nsync:x:4:100:sync:/bin:/bin/sync\nmail:x:8:8:mail:/var/spool/mail:/bin/false\n" +
		"www-data:x:33:33:www-data:/var/www:/bin/false\noperator:x:37:37:Operator:/var:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
	group = "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nmail:x:8:\nwheel:x:10:root\nutmp:x:43:\n" +
		"www-data:x:33:\naudio:x:29:\nvideo:x:44:\nusers:x:100:\nnogroup:x:65534:\n"
)

// scripts stand for programs that a build of busybox may lack, or have in another way than suites expect.
var scripts = map[string]string{
	"bash": "exec /bin/busybox sh \"$@\"\n",
	"ipcs": "cat /proc/sysvipc/shm\n",
	// As the first process of a container busybox's own is deaf to SIGTERM where it sets no handler, which depends on
	// its build.
	"nc":    "trap 'exit 143' TERM\n/bin/busybox nc \"$@\" <&0 &\nwait $!\n",
	"pgrep": "status=1\nfor dir in /proc/[0-9]*; do\n  if [ \"$(cat $dir/comm 2>/dev/null)\" = \"$1\" ]; then echo ${dir#/proc/}; status=0; fi\ndone\nexit $status\n",
}

func (p *Parts) base(hard bool) Layer {
	var l Layer
	for _, dir := range []string{"bin/", "dev/", "etc/", "home/", "lib/", "proc/", "root/", "run/", "sys/", "tmp/",
		"usr/", "usr/bin/", "usr/sbin/", "var/", "var/log/"} {
		l = append(l, File{Path: dir})
	}
	l = append(l,
		File{Path: "etc/passwd", Mode: 0o644, Data: []byte(passwd)},
		File{Path: "etc/group", Mode: 0o644, Data: []byte(group)},
		File{Path: "etc/os-release", Mode: 0o644, Data: []byte("NAME=busybox\nID=busybox\n")},
		File{Path: "etc/nsswitch.conf", Mode: 0o644, Data: []byte("hosts: files dns\n")},
		File{Path: "bin/busybox", Data: p.busybox},
	)
	for _, applet := range p.applets {
		if _, ok := scripts[applet]; !ok && applet != "busybox" {
			link := File{Path: "bin/" + applet, Link: "/bin/busybox"}
			if hard {
				link.Link, link.Hard = "bin/busybox", true
			}
			l = append(l, link)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(scripts)) {
		l = append(l, File{Path: "bin/" + name, Data: []byte("#!/bin/busybox sh\n" + scripts[name])})
	}
	return l
}

// Guest is a layer with cmd/guest at each of the paths.
func (p *Parts) Guest(paths ...string) Layer {
	var l Layer
	for _, path := range paths {
		l = append(l, File{Path: path, Data: p.guest})
	}
	return l
}

var env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// Busybox is an image of busybox, for several platforms, under the names.
func (p *Parts) Busybox(names ...string) Image {
	return Image{
		Names: names, Layers: []Layer{p.Base}, Platforms: platforms,
		Config: v1.Config{Env: env, Cmd: []string{"sh"}},
	}
}

// Server is busybox with cmd/guest as the program at path, which the image runs.
func (p *Parts) Server(path string, args []string, names ...string) Image {
	return Image{
		Names: names, Layers: []Layer{p.Base, p.Guest(path)},
		Config: v1.Config{Env: env, Cmd: append([]string{path}, args...)},
	}
}

// Marked is busybox with a further file that makes it an image of its own.
func (p *Parts) Marked(mark string, names ...string) Image {
	i := p.Busybox(names...)
	i.Platforms = nil
	i.Layers = append(i.Layers, Layer{{Path: mark, Mode: 0o644, Data: []byte(mark + "\n")}})
	return i
}

// platforms are those of images with several.
var platforms = []v1.Platform{
	{OS: "linux", Architecture: runtime.GOARCH},
	{OS: "linux", Architecture: other, Variant: map[string]string{"arm64": "v8"}[other]},
	{OS: "linux", Architecture: "s390x"},
	{OS: "linux", Architecture: "ppc64le"},
}

var other = map[bool]string{true: "amd64", false: "arm64"}[runtime.GOARCH == "arm64"]

// All are the images that the suites pull.
func (p *Parts) All() []Image {
	list := []Image{
		p.Busybox("ghcr.io/containerd/busybox:1.36", "registry.k8s.io/e2e-test-images/busybox:1.29-2",
			"docker.io/library/busybox:latest"),
		p.alpine("ghcr.io/containerd/alpine:3.14.0", "docker.io/library/alpine:latest"),
		p.pause("registry.k8s.io/pause:3.10.2", "registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.6"),
		p.pauseWith("mark", "registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"),
		p.Server("/usr/sbin/nginx", nil, "ghcr.io/containerd/nginx:1.27.0",
			"registry.k8s.io/e2e-test-images/nginx:1.14-2",
			"docker.io/library/nginx:latest"),
		p.Server("/usr/sbin/nginx", []string{"12003"},
			"gcr.io/k8s-staging-cri-tools/hostnet-nginx-"+runtime.GOARCH+":latest"),
		p.Server("/usr/sbin/httpd", nil, "registry.k8s.io/e2e-test-images/httpd:2.4.39-4"),
		p.consumer("registry.k8s.io/e2e-test-images/resource-consumer:1.10"),
		p.volumeCopyUp("ghcr.io/containerd/volume-copy-up:2.1", "ghcr.io/containerd/volume-copy-up:2.2"),
		p.volumeOwnership("ghcr.io/containerd/volume-ownership:2.1"),
		p.noNewPrivs("registry.k8s.io/e2e-test-images/nonewprivs:1.3"),
	}
	return append(list, p.criTools()...)
}

func (p *Parts) alpine(names ...string) Image {
	i := p.Busybox(names...)
	i.Layers = append([]Layer{p.Linked}, Layer{{Path: "etc/os-release", Mode: 0o644,
		Data: []byte("NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.14.0\n")}})
	return i
}

func (p *Parts) pause(names ...string) Image {
	return Image{
		Names: names, Layers: []Layer{p.Guest("pause")}, Platforms: platforms,
		Config: v1.Config{Env: env, Entrypoint: []string{"/pause"}, User: "65535:65535"},
	}
}

// pauseWith is a pause image that differs from the others by a file.
func (p *Parts) pauseWith(mark string, names ...string) Image {
	i := p.pause(names...)
	i.Layers = append(i.Layers, Layer{{Path: mark, Mode: 0o644, Data: []byte(mark + "\n")}})
	return i
}

func (p *Parts) consumer(names ...string) Image {
	i := p.Server("/consumer", nil, names...)
	i.Layers = append(i.Layers, p.Guest("usr/bin/stress"))
	return i
}

func (p *Parts) volumeCopyUp(names ...string) Image {
	i := p.Busybox(names...)
	i.Layers = append(i.Layers,
		Layer{{Path: "test_dir/"}, {Path: "test_dir/test_file", Mode: 0o644, Data: []byte("test_content\n")}},
		Layer{{Path: "C:/"}, {Path: "C:/weird_test_dir/"},
			{Path: "C:/weird_test_dir/weird_test_file", Mode: 0o644, Data: []byte("test_content\n")}},
		Layer{{Path: ":colon_prefixed/"}, {Path: ":colon_prefixed/colon_prefixed_file", Mode: 0o644,
			Data: []byte("test_content\n")}})
	i.Config.Volumes = map[string]struct{}{"/test_dir": {}, "C:/weird_test_dir": {}, "/:colon_prefixed": {}}
	return i
}

func (p *Parts) volumeOwnership(names ...string) Image {
	i := p.Busybox(names...)
	i.Layers = append(i.Layers, Layer{
		{Path: "test_dir/", UID: 65534, GID: 65534},
		{Path: "usr/bin/passwd", Mode: 0o4755, Data: []byte("#!/bin/sh\n")}, // the bit is looked at
		{Path: "bulk", Mode: 0o644, Data: noise(4 << 20)},                   // pulls of it are cut off after 3 MB
	})
	i.Config.Volumes = map[string]struct{}{"/test_dir": {}}
	return i
}

// noise are n bytes that cannot be compressed, always the same.
func noise(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data) // never fails
	return data
}

// noNewPrivs holds a program that belongs to root and has the set-user-id bit.
func (p *Parts) noNewPrivs(names ...string) Image {
	i := p.Busybox(names...)
	i.Layers = append(i.Layers, Layer{{Path: "nnp", Mode: 0o4755, Data: p.guest}})
	i.Config.Entrypoint = []string{"/nnp"}
	return i
}

// criTools are the images that critest names.
func (p *Parts) criTools() []Image {
	const prefix = "gcr.io/k8s-staging-cri-tools/"
	list := []Image{
		p.Marked("latest", prefix+"test-image-latest:latest"),
		p.Marked("digest", prefix+"test-image-digest:latest"),
		p.Marked("test", prefix+"test-image-tag:test"),
		p.Marked("all", prefix+"test-image-tag:all"),
		p.Marked("same-image", prefix+"test-image-tags:1", prefix+"test-image-tags:2", prefix+"test-image-tags:3"),
	}
	for n := 1; n <= 3; n++ {
		list = append(list, p.Marked(fmt.Sprintf("test-image-%d", n), fmt.Sprintf("%stest-image-%d:latest", prefix, n)))
	}
	for name, user := range map[string]string{
		"test-image-user-uid": "1002", "test-image-user-username": "www-data", "test-image-user-uid-group": "1003:1004",
		"test-image-user-username-group": "www-data:1004",
	} {
		i := p.Busybox(prefix + name + ":latest")
		i.Platforms, i.Config.User = nil, user
		list = append(list, i)
	}
	i := p.Busybox(prefix + "test-image-predefined-group:latest")
	i.Platforms, i.Config.User = nil, "1000"
	i.Layers = append(i.Layers, Layer{
		{Path: "etc/passwd", Mode: 0o644, Data: []byte(passwd +
			"default-user:x:1000:1000:Linux User,,,:/home/default-user:/bin/sh\n")},
		{Path: "etc/group", Mode: 0o644, Data: []byte(group +
			"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")},
	})
	return append(list, i)
}
