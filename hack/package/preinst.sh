#!/bin/sh
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# Before the files are unpacked, by dpkg (install|upgrade …) and by rpm (1|2).
set -e

[ -d /run/systemd/system ] || exit 0
# A unit that is not there yet, or not running under systemd at all, has no answer and comes with the package's own KillMode.
[ "$(systemctl show --property=LoadState --value containerd.service)" = loaded ] || exit 0

mode=$(systemctl show --property=KillMode --value containerd.service)
if [ "$mode" != process ]; then
  cat >&2 <<EOF
shimyard: containerd.service has KillMode=$mode: systemd would end all shims, and with them all containers, whenever
shimyard: the daemon is restarted. Nothing was installed. The files that make up the unit are shown by
shimyard:   systemctl cat containerd.service
shimyard: Set KillMode=process there, run 'systemctl daemon-reload', and install again.
EOF
  exit 1
fi
