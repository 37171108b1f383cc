// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/amsagent/amsagent/files"
)

// Errors a caller branches on with errors.Is. All are wrapped with the file, unit or address.
var (
	// ErrNoInstallation: the installation directory does not exist.
	ErrNoInstallation = errors.New("no such installation directory")
	// ErrNotAMS: the directory exists and is not an Ant Media Server tree. The error is a *NotAMSError.
	ErrNotAMS = errors.New("not an Ant Media Server tree")
	// ErrUnreadable: a part of the installation exists and cannot be read.
	ErrUnreadable = errors.New("unreadable")

	// ErrNotManaged: the service is [None].
	ErrNotManaged = errors.New("no service is managed here")
	// ErrNoSystemd: this machine does not run systemd, or systemd does not respond.
	ErrNoSystemd = errors.New("systemd is not available")
	// ErrNoUnit: systemd does not know the unit.
	ErrNoUnit = errors.New("no such unit")
	// ErrUnitMasked: the operator masked the unit, so it cannot start.
	ErrUnitMasked = errors.New("the unit is masked")
	// ErrUnitBroken: systemd has no usable file of the unit.
	ErrUnitBroken = errors.New("systemd cannot use the unit's file")
	// ErrUnstable: the service did not stay up. The error is an *UnstableError.
	ErrUnstable = errors.New("the service did not stay up")

	// ErrBadAddress: not usable as a node address.
	ErrBadAddress = errors.New("not a usable node address")
	// ErrAddressNotHere: a valid address that no interface of this machine has.
	ErrAddressNotHere = errors.New("no interface of this machine has the address")
	// ErrAddressUnreachable: an address that by its kind other machines cannot reach.
	ErrAddressUnreachable = errors.New("other nodes cannot reach this address")
	// ErrNoAddress: no source has the address of this node.
	ErrNoAddress = errors.New("no node address found")
	// ErrInterfacesUnknown: the root is not the running system's.
	ErrInterfacesUnknown = errors.New("the interfaces of that machine are not known here")

	// errNoProcess: no process has that id.
	errNoProcess = errors.New("no such process")
)

// NotAMSError lists what an Ant Media Server tree needs and the directory lacks.
type NotAMSError struct {
	Dir     string   // the directory as the caller named it
	Missing []string // parts below Dir, with the reason if not simply absent
}

// Error lists all missing parts, so that the operator can fix them together.
func (e *NotAMSError) Error() string {
	return fmt.Sprintf("%s is not an Ant Media Server tree: missing %s", e.Dir, strings.Join(e.Missing, ", "))
}

// Is makes errors.Is(err, ErrNotAMS) true.
func (e *NotAMSError) Is(target error) bool { return target == ErrNotAMS }

// Warning is information for the operator that does not stop the agent. ID is stable and searchable.
type Warning struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

func (w Warning) String() string { return w.ID + ": " + w.Text }

// Hint returns the operator's next step for an error of this package, or "". Specific errors come first: a job that
// timed out is also a context error.
func Hint(err error) string {
	var job *JobError
	var unstable *UnstableError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &job):
		return job.hint()
	case errors.As(err, &unstable):
		return LogHint(unstable.Service)
	case errors.Is(err, ErrNoInstallation):
		return "give the directory of Ant Media Server with --ams-dir"
	case errors.Is(err, ErrNotAMS):
		return "give the directory that holds conf and webapps with --ams-dir"
	case errors.Is(err, ErrUnitMasked):
		return "the unit is masked; unmask it: systemctl unmask " + DefaultUnit
	case errors.Is(err, ErrUnitBroken):
		return "see what systemd says of it: systemctl status " + DefaultUnit
	case errors.Is(err, ErrNoUnit):
		return "install Ant Media Server as a service, or say how it is run with --service-command or --service none"
	case errors.Is(err, ErrNoSystemd):
		return "say how Ant Media Server is run here with --service-command, or --service none to leave it alone"
	case errors.Is(err, ErrNotManaged):
		return "start or restart Ant Media Server yourself"
	case errors.Is(err, ErrAddressUnreachable):
		return "give this node's private IP address with --address; --force-address takes this one all the same"
	case errors.Is(err, ErrAddressNotHere):
		return "give one of the machine's own addresses; if this one is translated on the way (NAT), join with --force-address"
	case errors.Is(err, ErrBadAddress), errors.Is(err, ErrNoAddress):
		return "give this node's private IP address, by which the other nodes reach it, with --address, or as address: in config.yaml"
	case errors.Is(err, files.ErrForeign):
		return "root runs it: give it, and each folder on the way to it, to root alone"
	case errors.Is(err, fs.ErrPermission):
		return "run as root"
	case errors.Is(err, context.DeadlineExceeded):
		return "it may still come: look with 'amsagent status', or give more time with --timeout"
	}
	return ""
}
