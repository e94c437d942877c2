// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package box

import (
	"net"

	"github.com/pkg/errors"
	"github.com/vishvananda/netlink"
)

// network brings loopback up, and a device that has an address and the default route: kubelet and others want a node
// to have both.
func network() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return errors.Wrap(err, "cannot find the loopback device")
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return errors.Wrap(err, "cannot bring the loopback device up")
	}
	const peer = "eth0-peer" // only there to give eth0 a carrier
	dev := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: peer}
	if err := netlink.LinkAdd(dev); err != nil {
		return errors.Wrap(err, "cannot make the node's network device")
	}
	other, err := netlink.LinkByName(peer)
	if err != nil {
		return errors.Wrap(err, "cannot find the other end of the node's network device")
	}
	if err := netlink.LinkSetUp(other); err != nil {
		return errors.Wrap(err, "cannot bring the other end of the node's network device up")
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(Address).To4(), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(dev, addr); err != nil {
		return errors.Wrap(err, "cannot give the node's network device its address")
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		return errors.Wrap(err, "cannot bring the node's network device up")
	}
	gateway := net.ParseIP("192.0.2.1")
	return errors.Wrap(netlink.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Gw: gateway}),
		"cannot set the default route")
}
