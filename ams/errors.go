// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"io/fs"

	"github.com/amsagent/amsagent/files"
)

// The wrapping error names the file, unit or address.
var (
	errNotAMS = errors.New("not an Ant Media Server tree")

	// ErrNotManaged means that the service is [None].
	ErrNotManaged = errors.New("no service is managed here")
	// ErrNoSystemd also means that systemd does not respond.
	ErrNoSystemd  = errors.New("systemd is not available")
	ErrNoUnit     = errors.New("no such unit")
	ErrUnitMasked = errors.New("the unit is masked")
	ErrUnitBroken = errors.New("systemd cannot use the unit's file")

	errBadAddress         = errors.New("not a usable node address")
	errAddressUnreachable = errors.New("other nodes cannot reach this address")
	ErrAddressNotHere     = errors.New("no interface of this machine has the address")
	ErrNoAddress          = errors.New("no node address found")
	// ErrInterfacesUnknown means that the root is not the running system's.
	ErrInterfacesUnknown = errors.New("the interfaces of that machine are not known here")
)

// Warning does not stop the agent. ID is stable.
type Warning struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

// hints are in order of precedence.
var hints = []struct {
	err  error
	hint string
}{
	{errNotAMS, "give the directory that holds conf and webapps with --ams-dir"},
	{ErrUnitMasked, "the unit is masked; unmask it: systemctl unmask " + DefaultUnit},
	{ErrUnitBroken, "see what systemd says of it: systemctl status " + DefaultUnit},
	{ErrNoUnit, "install Ant Media Server as a service, or say how it is run with --service-command or --service none"},
	{ErrNoSystemd, "say how Ant Media Server is run here with --service-command, or --service none to leave it alone"},
	{ErrNotManaged, "start or restart Ant Media Server yourself"},
	{errAddressUnreachable, "give this node's private IP address with --address; --force-address takes this one all the same"},
	{ErrAddressNotHere, "give one of the machine's own addresses; if this one is translated on the way (NAT), join with --force-address"},
	{errBadAddress, addressHint},
	{ErrNoAddress, addressHint},
	{files.ErrForeign, "root runs it: give it, and each folder on the way to it, to root alone"},
	{fs.ErrPermission, "run as root"},
	{context.DeadlineExceeded, laterHint},
}

const (
	addressHint = "give this node's private IP address, by which the other nodes reach it, with --address, or as address: in config.yaml"
	laterHint   = "it may still come: look with 'amsagent status', or give more time with --timeout"
)

// Hint returns the operator's next step for an error of this package, or "".
func Hint(err error) string {
	if job, ok := errors.AsType[*JobError](err); ok {
		if job.Pending() {
			return laterHint
		}
		return LogHint(job.Service)
	}
	if unstable, ok := errors.AsType[*UnstableError](err); ok {
		return LogHint(unstable.Service)
	}
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	return ""
}
