// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package shimtest

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The pipes of a guest.
const (
	releaseFD = 3
	readyFD   = 4
)

// runGuest is the life of a process in a container; see the package doc for the commands.
func runGuest(args []string) int {
	go func() {
		for !ownerGone(os.Getenv(homeEnv)) {
			time.Sleep(ownerInterval)
		}
		os.Exit(1)
	}()
	if len(args) == 0 {
		args = []string{"sleep"}
	}
	if args[0] == "ignore" {
		ignore(args[1:])
	}
	ready, release := os.NewFile(readyFD, "ready"), os.NewFile(releaseFD, "release")
	_, _ = ready.Write([]byte{1})
	ready.Close()
	if n, _ := release.Read(make([]byte, 1)); n == 0 {
		sleepForever() // the shim is gone: a created container stays created
	}
	release.Close()
	return guestCommand(args[0], args[1:])
}

func guestCommand(name string, args []string) int {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	switch name {
	case "sleep":
		seconds, err := strconv.ParseFloat(arg(0), 64)
		if err != nil {
			sleepForever()
		}
		time.Sleep(time.Duration(seconds * float64(time.Second)))
	case "exit":
		code, _ := strconv.Atoi(arg(0))
		return code
	case "exit-after":
		ms, _ := strconv.Atoi(arg(0))
		code, _ := strconv.Atoi(arg(1))
		time.Sleep(time.Duration(ms) * time.Millisecond)
		return code
	case "die":
		dieBy(signalByName(arg(0)))
	case "echo":
		fmt.Println(strings.Join(args, " "))
	case "cat":
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			return 1
		}
	default:
		sleepForever()
	}
	return 0
}

// dieBy ends this process by a signal. Go's runtime makes an exit code of some, which a shell does not.
func dieBy(sig syscall.Signal) {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = syscall.Exec("/bin/sh", []string{"sh", "-c", fmt.Sprintf("kill -%d $$", sig)}, nil)
	sleepForever()
}

func sleepForever() {
	for {
		time.Sleep(time.Hour)
	}
}

func ignore(names []string) {
	if len(names) == 0 {
		names = []string{"TERM"}
	}
	for _, name := range names {
		signal.Ignore(signalByName(name))
	}
}

func signalByName(name string) syscall.Signal {
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig
	}
	return unix.SIGKILL
}
