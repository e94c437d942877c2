#!/bin/sh
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# After the files are in place, by dpkg (configure [OLD-VERSION], abort-…) and by rpm (1 for an installation, 2 for an upgrade).
set -e

daemon=/usr/lib/shimyard/containerd
dropin=50-shimyard.conf

case "$1" in
  configure) if [ -n "$2" ]; then upgrade=yes; else upgrade=no; fi ;;
  1) upgrade=no ;;
  2) upgrade=yes ;;
  *) exit 0 ;;
esac

say() { echo "shimyard: $*"; }

if [ ! -d /run/systemd/system ]; then
  say "systemd does not run here. The daemon is $daemon."
  exit 0
fi
systemctl daemon-reload

# Another drop-in may set the daemon's command line, too. systemd reads drop-ins in the order of their names, wherever they are, and the
# last one counts.
found=no
for file in $(systemctl show --property=DropInPaths --value containerd.service); do
  if [ "${file##*/}" = "$dropin" ]; then
    found=yes
  elif grep -q '^[[:space:]]*ExecStart[[:space:]]*=' "$file"; then
    if [ "$found" = yes ]; then
      say "$file sets ExecStart and is read after $dropin: it counts. Take its ExecStart lines out, or let it start $daemon." >&2
    else
      say "$file sets ExecStart and is read before $dropin, which replaces it. What its command line did is now left out;" >&2
      say "if you need it, give the same arguments to $daemon in a drop-in whose name sorts after $dropin." >&2
    fi
  fi
done

case "$(systemctl show --property=ExecStart --value containerd.service)" in
  *"path=$daemon "*) ;;
  *)
    say "containerd.service does not start $daemon, nothing was restarted. See: systemctl cat containerd.service" >&2
    exit 0
    ;;
esac

if [ "$upgrade" = yes ]; then
  # Containers go on: the unit's KillMode is process, preinst has made sure.
  if systemctl is-active --quiet containerd.service && ! systemctl restart containerd.service; then
    say "containerd.service was not restarted. Containers go on without it. What it said: journalctl -u containerd -e" >&2
    exit 1
  fi
else
  say "installed. The daemon that runs is still the one that ran before. To change over, with all containers running on:"
  say "  systemctl restart containerd"
fi
