// Copyright The Shimyard Authors.
// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/pkg/errors"
)

// saved is a machine that was stopped while it ran: its memory in a file, beside the image's disk.
type saved struct {
	memory string
	boot   string
}

// saveTime is how long the memory may take to its file, or out of it.
const saveTime = 5 * time.Minute

// Snapshot ends the machine and makes an image of it in dir. The first Start of a machine of this image goes on where
// this one was, without a boot; it must have the same Memory. Each later Start boots the disk.
func (m *Machine) Snapshot(dir string) (*Image, error) {
	if m.proc == nil {
		return nil, errors.New("the machine is off")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, errors.Wrap(err, "cannot make the image's directory")
	}
	img := *m.img
	img.Disk, img.saved = filepath.Join(dir, "disk"), &saved{memory: filepath.Join(dir, "memory"), boot: m.Boot}
	err := m.save(img.saved.memory)
	m.Cut()
	if err != nil {
		return nil, err
	}
	return &img, errors.Wrap(os.Rename(m.disk(), img.Disk), "cannot keep the machine's disk")
}

// save stops the machine and writes its memory to a file, as a migration does.
func (m *Machine) save(file string) error {
	q, err := m.monitor()
	if err != nil {
		return err
	}
	defer q.conn.Close()
	if _, err := q.call("migrate", map[string]string{"uri": "exec:cat >" + file}); err != nil {
		return err
	}
	return q.await("query-migrate", "completed")
}

// resumed returns once the machine goes on: what comes over the serial port before that is overwritten by the port's
// saved state.
func (m *Machine) resumed() error {
	q, err := m.monitor()
	if err != nil {
		return err
	}
	defer q.conn.Close()
	return q.await("query-status", "running")
}

// await asks until the status is the one wanted.
func (q *monitor) await(query, want string) error {
	for {
		data, err := q.call(query, nil)
		if err != nil {
			return err
		}
		var is struct{ Status string }
		if err := json.Unmarshal(data, &is); err != nil {
			return errors.Wrap(err, "cannot read the monitor's answer")
		}
		switch is.Status {
		case want:
			return nil
		case "failed", "cancelled", "internal-error":
			return errors.Errorf("%s: %s", query, data)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// monitor speaks QMP (docs/interop/qmp-spec.txt of qemu).
type monitor struct {
	conn    net.Conn
	replies *json.Decoder
}

// monitor connects to qemu's monitor for saveTime at most.
func (m *Machine) monitor() (*monitor, error) {
	conn, err := net.Dial("unix", m.monitorPath())
	if err != nil {
		return nil, errors.Wrap(err, "cannot reach qemu's monitor")
	}
	q := &monitor{conn: conn, replies: json.NewDecoder(conn)}
	err = errors.Wrap(conn.SetDeadline(time.Now().Add(saveTime)), "cannot set a deadline")
	if err == nil {
		_, err = q.call("qmp_capabilities", nil)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return q, nil
}

// call returns the command's answer, past the greeting and events.
func (q *monitor) call(command string, arguments any) (json.RawMessage, error) {
	req := map[string]any{"execute": command}
	if arguments != nil {
		req["arguments"] = arguments
	}
	data, err := json.Marshal(req)
	if err != nil {
		return nil, errors.Wrap(err, "cannot encode a command")
	}
	if _, err := q.conn.Write(data); err != nil {
		return nil, errors.Wrap(err, "cannot reach qemu's monitor")
	}
	for {
		var reply struct{ Return, Error json.RawMessage }
		if err := q.replies.Decode(&reply); err != nil {
			return nil, errors.Wrap(err, "qemu's monitor does not answer")
		}
		if reply.Error != nil {
			return nil, errors.Errorf("%s: %s", command, reply.Error)
		}
		if reply.Return != nil {
			return reply.Return, nil
		}
	}
}
