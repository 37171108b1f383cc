// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"fmt"
	"strings"
)

// Finding is the outcome of one check that is not plain success. Its ID is
// stable: people search for it, and scripts match it.
type Finding struct {
	ID   string `json:"id"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
	// Err is the error behind it, nil where the finding is one of judgement.
	Err error `json:"-"`
}

func (f Finding) String() string { return f.ID + ": " + f.Text }

// Title says in a few words what kind of trouble it is.
func (f Finding) Title() string {
	switch f.ID {
	case IDRoot:
		return "this needs root"
	case IDInstall:
		return "no usable Ant Media Server is here"
	case IDSections:
		return "jee-container.xml cannot be switched"
	case IDFile:
		return "a configuration file cannot be edited"
	case IDWritable:
		return "a folder cannot be written"
	case IDSpace:
		return "there is no room"
	case IDService:
		return "the service cannot be controlled"
	case IDAddress:
		return "this node has no usable address"
	case IDHostname:
		return "the host name leads to another address"
	case IDIdentity:
		return "this machine cannot be identified"
	case IDMongoForm:
		return "this release cannot use that connection string"
	case IDSessions:
		return "streams are live on this node"
	}
	return "a preflight check failed"
}

// The ids of the findings of this package; those about addresses and
// applications come from package ams.
const (
	IDRoot        = "AMS-ROOT"         // the process may not change the machine
	IDInstall     = "AMS-INSTALL"      // no usable installation
	IDRelease     = "AMS-RELEASE"      // the release is not known
	IDSections    = "AMS-SECTIONS"     // jee-container.xml cannot be switched
	IDFile        = "AMS-FILE"         // a file cannot be read or edited
	IDFileOwner   = "AMS-FILE-OWNER"   // a file does not belong to the server
	IDHardLink    = "AMS-HARD-LINK"    // a file has a second name
	IDConflict    = "AMS-CONFLICT"     // somebody edited what we wrote
	IDWritable    = "AMS-WRITABLE"     // a folder cannot be written
	IDSpace       = "AMS-SPACE"        // no room
	IDService     = "AMS-SERVICE"      // the service cannot be controlled
	IDAddress     = "AMS-ADDRESS"      // no usable node address
	IDHostname    = "AMS-HOSTNAME"     // the machine's name and its address
	IDIdentity    = "AMS-IDENTITY"     // the machine cannot be named
	IDMongoForm   = "AMS-MONGO-FORM"   // the release cannot use this connection string
	IDMongo       = "AMS-MONGO"        // MongoDB does not answer
	IDMongoAuth   = "AMS-MONGO-AUTH"   // MongoDB refuses the credentials
	IDMongoLocal  = "AMS-MONGO-LOCAL"  // a loopback address is no cluster
	IDMongoOption = "AMS-MONGO-OPTION" // something odd in the connection string
	IDClock       = "AMS-CLOCK"        // this machine's clock is off
	IDSessions    = "AMS-SESSIONS"     // streams are live on this node
	IDInterrupted = "AMS-RECOVERED"    // an interrupted run was finished first
	IDUnverified  = "AMS-UNVERIFIED"   // a check could not be made
	IDDeregister  = "AMS-DEREGISTER"   // the cluster still lists this node
	IDDrift       = "AMS-DRIFT"        // the files differ from what was joined with
)

// PreflightError lists every check that failed. Nothing was changed.
type PreflightError struct{ Findings []Finding }

func (e *PreflightError) Error() string {
	if len(e.Findings) == 1 {
		return e.Findings[0].Text
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d checks failed", len(e.Findings))
	for _, f := range e.Findings {
		fmt.Fprintf(&b, "\n%s", f)
	}
	return b.String()
}

// Unwrap gives the errors behind the findings.
func (e *PreflightError) Unwrap() []error {
	var errs []error
	for _, f := range e.Findings {
		if f.Err != nil {
			errs = append(errs, f.Err)
		}
	}
	return errs
}

// FailedError says at which step a join or leave failed and which state it
// left.
type FailedError struct {
	Step string
	Err  error
	// State is what the machine is in now, in a sentence for people.
	State string
	// Hint is what to do next, where this package knows.
	Hint string
	// Unknown tells that the outcome is not known yet, rather than bad: time
	// ran out while waiting.
	Unknown bool
}

func (e *FailedError) Error() string { return e.Step + ": " + e.Err.Error() }
func (e *FailedError) Unwrap() error { return e.Err }

// ErrNotMember says that this machine is not a cluster node.
var ErrNotMember = errors.New("this machine is not a cluster node")
