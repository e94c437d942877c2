// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// chapter holds the commands of the README's chapter on nodes, and those that show what the daemon does: they are what
// the checks run.
type chapter struct{ install, changeOver, upgrade, downgrade, aside, back, remove, shims string }

func readChapter(t *testing.T) chapter {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, text, found := strings.Cut(string(readme), "\n## Put it on a node\n")
	require.True(t, found)
	text, _, _ = strings.Cut(text, "\n## ")
	var blocks []string
	for _, b := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, b[1])
	}
	require.Len(t, blocks, 5, "install, upgrade, set aside, return, remove")
	install, changeOver, _ := strings.Cut(blocks[0], "\n")
	require.Contains(t, text, "--allow-downgrades")
	downgrade := strings.Replace(blocks[1], "apt-get install", "apt-get install --allow-downgrades", 1)
	require.NotEqual(t, blocks[1], downgrade)
	return chapter{
		install: install, changeOver: changeOver, upgrade: blocks[1], downgrade: downgrade,
		aside: blocks[2], back: blocks[3], remove: blocks[4], shims: readCommands(t, string(readme)),
	}
}

// readCommands are the first ones that the README has an operator ask with.
func readCommands(t *testing.T, readme string) string {
	_, text, found := strings.Cut(readme, "\n## See what it does\n")
	require.True(t, found)
	block := regexp.MustCompile("(?s)\n```\n(.*?)```").FindStringSubmatch(text)
	require.NotNil(t, block)
	require.Contains(t, block[1], " ID ")
	return strings.ReplaceAll(block[1], " ID ", " ours ")
}

// with is the script before which VERSION of our package lies in the working directory; what the commands say is kept
// for `said`.
func with(version, commands string) string {
	return "cp /payload/shimyard-" + version + ".deb shimyard_" + version + ".deb\n" + kept(commands) + "rm -f shimyard_*.deb\n"
}

func kept(commands string) string {
	return "{\n" + strings.TrimSpace(commands) + "\n} 2>&1 | tee /tmp/dpkg.out\n"
}

// The package over Debian's own containerd and over that of the pinned release, through all that the README has a
// package manager do to it, under containers that must not notice: one has a shim of containerd 1.6, one of the
// current release, one was made by our daemon.
func TestPackage(t *testing.T) {
	t.Parallel()
	n := newDebianNode(t, "package")
	n.boot(t)
	readme := readChapter(t)
	for _, s := range packageSteps(readme) {
		if short() && s.long {
			continue
		}
		if !t.Run(s.name, func(t *testing.T) { n.sh(t, s.script) }) {
			t.FailNow() // what follows builds on it
		}
	}
}

// step is a check that builds on those before it; one that is long is left out of the short run.
type step struct {
	check
	long bool
}

func packageSteps(readme chapter) []step {
	return []step{
		{check{"Debian's containerd runs a container", `
daemon_is $stock
import_image
start_box debian; mark debian`}, false},
		{check{"an installation restarts nothing and says what to do", `
before=$(main_pid)
` + with("1", readme.install) + `
said 'systemctl restart containerd'
[ "$(main_pid)" = "$before" ] || fail "the daemon was restarted"
unnoticed $(boxes)`}, false},
		{check{"the change-over", kept(readme.changeOver) + `
said ' ok '
daemon_is $ours
unnoticed $(boxes)
start_box ours; mark ours`}, false},
		// Of these logs -f does not end by itself (124), and not every shim has stacks to show (5).
		{check{"the README's commands are the package's", `
shimyard() {
  local code=0
  timeout 30 /usr/bin/shimyard "$@" || code=$?
  case $code in 0 | 5 | 124) ;; *) return "$code" ;; esac
}
` + kept(readme.shims) + `
unset -f shimyard
said ours
shimyard shims check`}, false},
		{check{"an upgrade of containerd's package beneath", `
install /payload/containerd.deb
daemon_is $ours
unnoticed $(boxes)
start_box stock; mark stock`}, false},
		{check{"an upgrade restarts", `
before=$(main_pid)
` + with("2", readme.upgrade) + `
daemon_is $ours
[ "$(main_pid)" != "$before" ] || fail "the daemon was not restarted"
unnoticed $(boxes)`}, false},
		{check{"a downgrade", with("1", readme.downgrade) + `
dpkg-query -W -f '${Version}' shimyard | grep -F 0.0.1+
daemon_is $ours
unnoticed $(boxes)`}, true},
		{check{"set aside and taken back", readme.aside + `
daemon_is $stock
unnoticed $(boxes)
` + readme.back + `
daemon_is $ours
unnoticed $(boxes)`}, true},
		{check{"a removal starts stock and leaves no warm shim", `
ctr run --rm $image warm true
` + kept(readme.remove) + `
daemon_is $stock
unnoticed $(boxes)
[ "$(shims | wc -l)" = "$(boxes | wc -w)" ] || fail "more shims than containers: $(shims)"
[ ! -e /usr/lib/shimyard ] || fail "/usr/lib/shimyard is still there"
if systemctl cat containerd | grep -i shimyard; then fail "the drop-in is still there"; fi`}, false},
		{check{"a removal of what does not run starts nothing", `
install /payload/shimyard-1.deb
systemctl stop containerd
` + kept(readme.remove) + `
if systemctl is-active containerd; then fail "a daemon was started"; fi
systemctl start containerd
daemon_is $stock
unnoticed $(boxes)`}, true},
		{check{"a unit that would kill the containers is refused", `
dir=/etc/systemd/system/containerd.service.d; mkdir -p $dir
printf '[Service]\nKillMode=control-group\n' >$dir/kill.conf
systemctl daemon-reload
if install /payload/shimyard-1.deb; then fail "it was installed"; fi
said 'KillMode=control-group'
[ ! -e /usr/lib/shimyard ] || fail "/usr/lib/shimyard is there"
daemon_is $stock
rm $dir/kill.conf
systemctl daemon-reload
unnoticed $(boxes)`}, true},
		{check{"an ExecStart of the admin's is found and said", `
dir=/etc/systemd/system/containerd.service.d; mkdir -p $dir
printf '[Service]\nExecStart=\nExecStart=/usr/bin/containerd --log-level debug\n' >$dir/90-mine.conf
systemctl daemon-reload
install /payload/shimyard-1.deb
said "$dir/90-mine.conf sets ExecStart and is read after"
said 'nothing was restarted'
mv $dir/90-mine.conf $dir/10-mine.conf
systemctl daemon-reload
install /payload/shimyard-2.deb
said "$dir/10-mine.conf sets ExecStart and is read before"
rm $dir/10-mine.conf
systemctl daemon-reload
systemctl restart containerd
daemon_is $ours
unnoticed $(boxes)`}, false},
		{check{"all of them end with the exit code that they chose", `
finish_box $(boxes)
no_leftovers`}, false},
	}
}
