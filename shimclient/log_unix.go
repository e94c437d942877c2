// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package shimclient

import (
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

func openLog(path string, fields log.Fields, out io.Writer) (*Log, error) {
	f, err := openFifo(path)
	if err != nil {
		return nil, errors.Wrap(err, "cannot open the shim's log")
	}
	w := &lineWriter{out: out, fields: newLineFields(fields)}
	c := &Log{lines: w, done: make(chan struct{})}
	c.stop = func() { _ = f.SetReadDeadline(time.Unix(1, 0)) }
	go func() {
		defer close(c.done)
		defer f.Close()
		copyFifo(w, f)
	}()
	return c, nil
}

// copyFifo copies until the read deadline, and then what is still there: the
// last words of a shim that died are worth having. It stops after as much as a
// fifo can hold, as a shim may go on writing.
func copyFifo(w *lineWriter, f *os.File) {
	defer w.flush()
	buf := make([]byte, 16<<10)
	for {
		n, err := f.Read(buf)
		_, _ = w.Write(buf[:n])
		if err != nil {
			break
		}
	}
	if f.SetReadDeadline(time.Time{}) != nil {
		return
	}
	for left := maxPipe; left > 0; {
		n := readNow(f, buf)
		if n <= 0 {
			return
		}
		_, _ = w.Write(buf[:n])
		left -= n
	}
}

// openFifo opens a fifo for reading, making it if it is missing. It is opened for
// writing too, so that it neither blocks nor ends while no shim has it open, and
// no shim gets SIGPIPE between one daemon and the next.
func openFifo(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o700); err != nil && err != unix.EEXIST {
		return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	// A device is not even to be opened.
	if info, err := os.Lstat(path); err != nil {
		return nil, err
	} else if info.Mode().Type() != os.ModeNamedPipe {
		return nil, notFifo(path)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ELOOP {
		return nil, notFifo(path)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(fd)
		return nil, notFifo(path)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func notFifo(path string) error {
	return errors.Wrapf(errdefs.ErrFailedPrecondition, "%s is not a fifo", path)
}
