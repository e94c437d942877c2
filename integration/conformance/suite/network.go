// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"

	"github.com/shimyard/shimyard/integration/conformance/box"
)

// Network adds CNI's plugins and iptables to the plan.
func (k *Kit) Network(p *Plan) error {
	dir, err := k.Debian("network", nil, "containernetworking-plugins", "iptables", "libip4tc2", "libip6tc2",
		"libxtables12", "libnftnl11",
		"libmnl0", "libnetfilter-conntrack3", "libnfnetlink0")
	if err != nil {
		return err
	}
	p.Layers = append(p.Layers, dir)
	return nil
}

// The directories in which CNI's plugins and their configuration are looked for.
const (
	CNIBin  = "/opt/cni/bin"
	CNIConf = "/etc/cni/net.d"
)

// Network makes what Kit.Network unpacked ready for use: iptables in the flavour that the kernel has, the plugins in
// CNIBin, and a bridge as the network of pods.
func (s *Site) Network(ctx context.Context) error {
	if err := s.iptables(ctx); err != nil {
		return err
	}
	for _, dir := range []string{CNIBin, CNIConf} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return errors.Wrap(err, "cannot make a directory for CNI")
		}
	}
	plugins, _ := filepath.Glob("/usr/lib/cni/*") // the pattern is well-formed
	for _, plugin := range plugins {
		if err := os.Symlink(plugin, filepath.Join(CNIBin, filepath.Base(plugin))); err != nil {
			return errors.Wrap(err, "cannot put a CNI plugin in place")
		}
	}
	return CNIConfig(CNIConf, "containerd-net", "bridge", "cni0")
}

// CNIConfig writes the configuration of a network of pods, whose plugin is bridge or one like it, into dir. device is
// the name of the bridge, at most 15 bytes.
func CNIConfig(dir, network, plugin, device string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return errors.Wrap(err, "cannot make a directory for CNI")
	}
	capabilities := ""
	if plugin != "bridge" {
		capabilities = `, "capabilities": {"io.kubernetes.cri.pod-annotations": true}`
	}
	text := strings.NewReplacer("NETWORK", network, "PLUGIN", plugin, "DEVICE", device, "CAPABILITIES",
		capabilities).Replace(conflist)
	return errors.Wrap(os.WriteFile(filepath.Join(dir, "10-containerd-net.conflist"), []byte(text), 0o644),
		"cannot write CNI's configuration")
}

// conflist is the network that containerd's own scripts set up.
const conflist = `{
  "cniVersion": "1.0.0",
  "name": "NETWORK",
  "plugins": [
    {
      "type": "PLUGIN", "bridge": "DEVICE", "isGateway": true, "ipMasq": true, "promiscMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:4860:4860::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }CAPABILITIES
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// iptables chooses between the two flavours of the programs.
func (s *Site) iptables(ctx context.Context) error {
	log, err := s.Log("iptables.log")
	if err != nil {
		return err
	}
	defer log.Close()
	for _, flavour := range []string{"nft", "legacy"} {
		if s.Command(ctx, log, "iptables-"+flavour, "-t", "nat", "-A", "OUTPUT", "-m", "comment", "--comment", "probe",
			"-j", "RETURN").Run() != nil {
			continue
		}
		if err := s.Command(ctx, log, "iptables-"+flavour, "-t", "nat", "-F", "OUTPUT").Run(); err != nil {
			return errors.Wrap(err, "cannot remove a rule of iptables")
		}
		for _, name := range []string{"iptables", "ip6tables"} {
			for _, suffix := range []string{"", "-save", "-restore"} {
				target := "/usr/sbin/" + name + "-" + flavour + suffix
				if err := os.Symlink(target, filepath.Join(box.Programs, name+suffix)); err != nil {
					return errors.Wrap(err, "cannot put iptables in place")
				}
			}
		}
		return nil
	}
	return errors.New("cannot use iptables in either flavour, see iptables.log")
}
