// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/amsagent/amsagent/conf"
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
	case IDFileLink:
		return "a link of another user is not followed"
	case IDFileSize:
		return "a configuration file is too large"
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
		return "this node has sessions"
	case IDRecord:
		return "what the agent wrote down about its changes cannot be used"
	case IDDuplicate:
		return "another machine has this machine's id"
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
	IDTorn        = "AMS-TORN"         // a settings file is half written
	IDFileOwner   = "AMS-FILE-OWNER"   // a file does not belong to the server
	IDFileLink    = "AMS-FILE-LINK"    // a link that is not followed
	IDFileSize    = "AMS-FILE-SIZE"    // a file that is larger than what is read
	IDHardLink    = "AMS-HARD-LINK"    // a file has a second name
	IDConflict    = "AMS-CONFLICT"     // somebody edited what we wrote
	IDWritable    = "AMS-WRITABLE"     // a folder cannot be written
	IDSpace       = "AMS-SPACE"        // no room
	IDService     = "AMS-SERVICE"      // the service cannot be controlled
	IDNotEnabled  = "AMS-NOT-ENABLED"  // the server does not start at boot
	IDAddress     = "AMS-ADDRESS"      // no usable node address
	IDHostname    = "AMS-HOSTNAME"     // the machine's name and its address
	IDIdentity    = "AMS-IDENTITY"     // the machine cannot be named
	IDMongoForm   = "AMS-MONGO-FORM"   // the release cannot use this connection string
	IDMongo       = "AMS-MONGO"        // MongoDB does not answer
	IDMongoAuth   = "AMS-MONGO-AUTH"   // MongoDB refuses the credentials
	IDMongoLocal  = "AMS-MONGO-LOCAL"  // a loopback address is no cluster
	IDMongoOption = "AMS-MONGO-OPTION" // something odd in the connection string
	IDMongoMember = "AMS-MONGO-MEMBER" // the address names one member of a set
	IDClock       = "AMS-CLOCK"        // this machine's clock is off
	IDSessions    = "AMS-SESSIONS"     // publishers or viewers are on this node
	IDInterrupted = "AMS-RECOVERED"    // an interrupted run was finished first
	IDUnverified  = "AMS-UNVERIFIED"   // a check could not be made
	IDDeregister  = "AMS-DEREGISTER"   // the cluster still lists this node
	IDDrift       = "AMS-DRIFT"        // the files differ from what was joined with
	IDRecord      = "AMS-RECORD"       // the agent's own files cannot be used
	// IDDuplicate: another machine beats under this machine's id.
	IDDuplicate = "AGENT-DUPLICATE-ID"
)

// PreflightError lists every check that failed. Nothing was changed.
type PreflightError struct {
	Findings []Finding
	// State is what the machine is in where that is not simply untouched: an
	// interrupted run was finished first.
	State string
}

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
	// Title says what happened, where "cannot leave" would say that nothing did.
	Title string
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

// leftBy says what a commit that failed left of the files, and what to do about
// it. before and after are the sentences for files that are all as they were, and
// all as they were to be.
func leftBy(err error, before, after string) (state, hint string) {
	var u *conf.UnfinishedError
	if !errors.As(err, &u) {
		return before, ""
	}
	const again = "run the same command again: it finishes or undoes what was begun"
	switch {
	case len(u.New)+len(u.Edited) == 0:
		return before + ", but temporary files, or an empty folder, are left", "the next join or leave removes them"
	case len(u.Old)+len(u.Edited) == 0:
		return after + ", but what was begun is not finished", again
	}
	var parts []string
	for _, p := range []struct {
		what  string
		paths []string
	}{{"new", u.New}, {"as before", u.Old}, {"edited by somebody else", u.Edited}} {
		if len(p.paths) > 0 {
			parts = append(parts, p.what+": "+joinPaths(p.paths))
		}
	}
	return "the files are half changed (" + strings.Join(parts, "; ") + ")", again + "; do not restart Ant Media Server before that"
}

// needsRoot makes of an error by which another user is kept from reading what the agent keeps for root the finding that says
// so; false for any other.
func (m *Machine) needsRoot(err error) (Finding, bool) {
	if m.Euid == 0 || !errors.Is(err, fs.ErrPermission) {
		return Finding{}, false
	}
	return Finding{ID: IDRoot, Text: "only root may read what the agent keeps of this machine: " + err.Error(), Hint: "run it with sudo", Err: err}, true
}

// recordFinding is what to say of a file of the agent's own that cannot be used;
// false where err is of another kind. way is the way out of a damaged one.
func recordFinding(err error, way string) (Finding, bool) {
	var damaged *conf.DamagedError
	var version *conf.VersionError
	switch {
	case errors.As(err, &damaged):
		return Finding{ID: IDRecord, Text: err.Error(), Hint: way, Err: err}, true
	case errors.As(err, &version):
		return Finding{
			ID: IDRecord, Text: err.Error(), Err: err,
			Hint: "run the release of amsagent that wrote it; or move the file away: 'amsagent leave' then makes this machine standalone without it",
		}, true
	}
	return Finding{}, false
}

// ErrNotMember says that this machine is not a cluster node.
var ErrNotMember = errors.New("this machine is not a cluster node")
