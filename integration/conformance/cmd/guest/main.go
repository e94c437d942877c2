// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

// Command guest is every server in the images that the suites pull. What it does its name says: pause sleeps until it
// is told to end, nginx and httpd serve a page, stress holds memory, nnp prints its effective user, consumer waits.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	name := filepath.Base(strings.TrimSuffix(strings.Fields(os.Args[0])[0], ":"))
	switch name {
	case "pause", "consumer":
		wait()
	case "nginx", "httpd":
		title(name)
		serve(name, os.Args[1:])
	case "stress":
		stress()
	case "nnp":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
	default:
		fmt.Fprintf(os.Stderr, "guest: cannot tell what to do from the name %q\n", name)
		os.Exit(2)
	}
}

// wait reaps, as an init does, until it is told to end.
func wait() {
	stop := make(chan os.Signal, 1)
	children := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	signal.Notify(children, syscall.SIGCHLD)
	for {
		select {
		case <-stop:
			return
		case <-children:
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		}
	}
}

// title gives the process the arguments, and the file of its pid, that suites look for. It starts the program again,
// once.
func title(name string) {
	prefix := name + ": master process "
	if strings.HasPrefix(os.Args[0], prefix) {
		return
	}
	_ = os.MkdirAll("/var/run", 0o755) // the root file system may be read-only
	_ = os.WriteFile("/var/run/"+name+".pid", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
	self, err := os.Executable()
	if err == nil {
		err = syscall.Exec(self, append([]string{prefix + self}, os.Args[1:]...), os.Environ())
	}
	fmt.Fprintln(os.Stderr, name+": cannot take its title:", err)
	os.Exit(1)
}

// serve answers on the ports that are its arguments, or on 80, and logs each request.
func serve(name string, ports []string) {
	if len(ports) == 0 {
		ports = []string{"80"}
	}
	page := "<html><head><title>Welcome to " + name + "!</title></head><body><h1>It works!</h1></body></html>\n"
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s - - [%s] %q 200\n", r.RemoteAddr, time.Now().Format(time.RFC3339), r.Method+" "+r.URL.Path)
		fmt.Fprint(w, page)
	})
	// Suites wait for what the real ones log.
	fmt.Fprintf(os.Stderr,
		"%s: start worker processes; resuming normal operations -- Command line: 'httpd -D FOREGROUND'\n", name)
	failed := make(chan error, len(ports))
	for _, port := range ports {
		go func() { failed <- http.ListenAndServe(":"+port, handler) }()
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	select {
	case err := <-failed:
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	case <-stop:
	}
}

// stress takes memory for a while, with the flags of the program of that name.
func stress() {
	workers := flag.Int("m", 1, "how many blocks of memory")
	size := flag.String("vm-bytes", "100M", "the size of each, in MiB with M")
	_ = flag.Int("vm-hang", 0, "ignored: memory is held to the end")
	seconds := flag.Int("t", 30, "how long")
	flag.Parse()
	mib, err := strconv.Atoi(strings.TrimSuffix(*size, "M"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "stress: cannot read --vm-bytes:", err)
		os.Exit(2)
	}
	block := make([]byte, *workers*mib<<20)
	for i := 0; i < len(block); i += os.Getpagesize() {
		block[i] = 1
	}
	time.Sleep(time.Duration(*seconds) * time.Second)
	fmt.Println("stress: held", len(block), "bytes")
}
