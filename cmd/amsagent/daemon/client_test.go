// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
	"testing"
)

// A user who may not open the socket is neither without a daemon nor at another version's.
func TestClientWithoutPermission(t *testing.T) {
	c := NewClient("/run/amsagent/control.sock", nil)
	err := c.classify(t.Context(), &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", syscall.EACCES)})
	if !errors.Is(err, fs.ErrPermission) || errors.Is(err, ErrDown) || errors.Is(err, ErrVersion) || errors.Is(err, ErrLost) {
		t.Error(err)
	}
}
