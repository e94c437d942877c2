#!/bin/sh
# Copyright The Shimyard Authors.
# SPDX-License-Identifier: Apache-2.0

# After the files are gone, by dpkg (remove|purge|upgrade …) and by rpm (0 for a removal, 1 for an upgrade).
set -e

case "$1" in
  remove | 0) ;;
  *) exit 0 ;;
esac
[ -d /run/systemd/system ] || exit 0

# The drop-in is gone with the package. The running daemon is still ours: the restart ends it cleanly, which ends the shims that serve no
# container, and starts containerd's own. Where the unit was not running nothing is started. One job of systemd's rather than a stop
# before the removal and a start after it: units that require containerd come back, and no failure in between leaves the node without.
systemctl daemon-reload
[ "$(systemctl show --property=LoadState --value containerd.service)" = loaded ] || exit 0
if ! systemctl try-restart containerd.service; then
  echo "shimyard: containerd.service was not restarted. Containers go on without it. See: journalctl -u containerd -e" >&2
  exit 1
fi
