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
	errNotAMS = hinted("not an Ant Media Server tree", "give the directory that holds conf and webapps with --ams-dir")

	// ErrNotManaged means that the service is [None].
	ErrNotManaged = hinted("no service is managed here", "start or restart Ant Media Server yourself")
	// ErrNoSystemd also means that systemd does not respond.
	ErrNoSystemd = hinted("systemd is not available",
		"say how Ant Media Server is run here with --service-command, or --service none to leave it alone")
	// errNoBus means that the boot has not reached sysinit.target, or that D-Bus is not installed.
	errNoBus = hinted("this machine has no system bus, or not yet",
		"before sysinit.target a boot starts no service: run amsagent later, from a script or runcmd of user data, not bootcmd; if D-Bus is missing, install it")
	ErrNoUnit = hinted("no such unit",
		"install Ant Media Server as a service, or say how it is run with --service-command or --service none")
	ErrUnitMasked = hinted("the unit is masked", "the unit is masked; unmask it: systemctl unmask "+DefaultUnit)
	ErrUnitBroken = hinted("systemd cannot use the unit's file", "see what systemd says of it: systemctl status "+DefaultUnit)

	errBadAddress         = hinted("not a usable node address", addressHint)
	errAddressUnreachable = hinted("other nodes cannot reach this address",
		"give this node's private IP address with --address; --force-address takes this one all the same")
	ErrAddressNotHere = hinted("no interface of this machine has the address",
		"give one of the machine's own addresses; if this one is translated on the way (NAT), join with --force-address")
	ErrNoAddress = hinted("no node address found", addressHint)
	// ErrInterfacesUnknown means that the root is not the running system's.
	ErrInterfacesUnknown = errors.New("the interfaces of that machine are not known here")
)

const (
	addressHint = "give this node's private IP address, by which the other nodes reach it, with --address, or as address: in config.yaml"
	laterHint   = "it may still come: look with 'amsagent status', or give more time with --timeout"
)

type hintedError struct{ text, hint string }

func hinted(text, hint string) error { return &hintedError{text, hint} }

func (e *hintedError) Error() string { return e.text }

// Warning does not stop the agent. ID is stable.
type Warning struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

// Hint returns the operator's next step for this package's errors, or "".
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
	if own, ok := errors.AsType[*hintedError](err); ok {
		return own.hint
	}
	switch {
	case errors.Is(err, files.ErrForeign):
		return "root runs it: give it, and each folder on the way to it, to root alone"
	case errors.Is(err, fs.ErrPermission):
		return "run it with sudo"
	case errors.Is(err, context.DeadlineExceeded):
		return laterHint
	}
	return ""
}
