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

// Severity is how bad a finding is.
type Severity string

// The severities, the worst first.
const (
	// Bad: a command is refused, or a node does not serve, or not for long.
	Bad Severity = "bad"
	// Warning: it works, and is not as it should be.
	Warning Severity = "warning"
	// Unknown: the check could not be made.
	Unknown Severity = "unknown"
	Good    Severity = "good"
)

// Finding is the result of a check. Scripts match its ID.
type Finding struct {
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	Text     string   `json:"text"`
	Hint     string   `json:"hint,omitempty"`
	Err      error    `json:"-"`
}

func failure(id string, err error, hint string) Finding {
	return Finding{ID: id, Severity: Bad, Text: err.Error(), Hint: hint, Err: err}
}

func warningOf(id, hint, format string, args ...any) Finding {
	return newFinding(Warning, id, hint, format, args...)
}

func newFinding(s Severity, id, hint, format string, args ...any) Finding {
	return Finding{ID: id, Severity: s, Text: fmt.Sprintf(format, args...), Hint: hint}
}

// Failed returns the findings that refuse a command, and the others.
func Failed(findings []Finding) (failed, others []Finding) {
	for _, f := range findings {
		if f.Severity == Bad {
			failed = append(failed, f)
		} else {
			others = append(others, f)
		}
	}
	return failed, others
}

func (f Finding) String() string { return f.ID + ": " + f.Text }

// Title returns a heading for the finding's ID.
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
	case idSessions:
		return "this node has sessions, or they are not known"
	case IDRecord:
		return "what the agent wrote down about its changes cannot be used"
	case IDClock:
		return "this machine's clock is wrong"
	case IDDuplicate:
		return "another machine has this machine's id"
	}
	return "a preflight check failed"
}

// RootHint is the advice for a user without root's rights.
const RootHint = "run it with sudo"

// IDs of findings. Package ams has those about addresses and applications.
const (
	IDRoot        = "AGENT-ROOT" // the process lacks the rights
	IDInstall     = "AMS-INSTALL"
	IDRelease     = "AMS-RELEASE"    // unknown
	IDSections    = "AMS-SECTIONS"   // jee-container.xml cannot be switched
	IDFile        = "AMS-FILE"       // a file is unusable
	IDTorn        = "AMS-TORN"       // a file is half written
	IDFileOwner   = "AMS-FILE-OWNER" // the server does not own a file
	IDFileLink    = "AMS-FILE-LINK"
	IDFileSize    = "AMS-FILE-SIZE"
	IDHardLink    = "AMS-HARD-LINK" // a file has several names
	IDConflict    = "AGENT-EDITED"  // edited since the join
	IDWritable    = "AMS-WRITABLE"
	IDSpace       = "AMS-SPACE"
	IDService     = "AMS-SERVICE"     // the service cannot be controlled
	IDNotEnabled  = "AMS-NOT-ENABLED" // the server does not start at boot
	IDAddress     = "AMS-ADDRESS"
	IDHostname    = "AMS-HOSTNAME" // name and address differ
	IDIdentity    = "AGENT-IDENTITY"
	IDMongoForm   = "AMS-MONGO-FORM"   // the release cannot use the connection string
	IDMongo       = "AMS-MONGO"        // no answer
	IDMongoAuth   = "AMS-MONGO-AUTH"   // access denied
	IDMongoLocal  = "AMS-MONGO-LOCAL"  // a loopback address
	IDMongoOption = "AMS-MONGO-OPTION" // an unexpected option
	IDMongoMember = "AMS-MONGO-MEMBER" // one member of a replica set
	IDClock       = "AMS-CLOCK"
	IDTimeline    = "AGENT-DEADLINES"  // deadlines that contradict each other
	idSessions    = "AMS-SESSIONS"     // the node has sessions
	idInterrupted = "AGENT-RECOVERED"  // an interrupted run was finished
	IDUnverified  = "AGENT-UNVERIFIED" // a check could not be made
	idDeregister  = "AGENT-DEREGISTER" // still in the cluster's lists
	IDDrift       = "AMS-DRIFT"        // not as joined
	IDRecord      = "AGENT-RECORD"     // an unusable file of the agent
	// IDDuplicate reports another machine with this machine's id.
	IDDuplicate = "AGENT-DUPLICATE-ID"
	// IDRole: no other node has the role.
	IDRole = "AGENT-ROLE"
	// IDCount: viewers cannot be counted.
	IDCount = "AGENT-NOT-COUNTED"
)

// PreflightError lists all failed checks. Nothing was changed.
type PreflightError struct {
	Findings []Finding
	// State is "" unless an interrupted run was finished first.
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

// Unwrap returns the findings' errors.
func (e *PreflightError) Unwrap() []error {
	var errs []error
	for _, f := range e.Findings {
		if f.Err != nil {
			errs = append(errs, f.Err)
		}
	}
	return errs
}

// FailedError is a step that failed, and the state that it left.
type FailedError struct {
	Step string
	Err  error
	// Title replaces a heading such as "cannot leave" if that is wrong.
	Title string
	// State describes the machine now, in a sentence.
	State string
	Hint  string
	// Unknown reports a timeout: the outcome may be good.
	Unknown bool
}

func (e *FailedError) Error() string { return e.Step + ": " + e.Err.Error() }
func (e *FailedError) Unwrap() error { return e.Err }

// leftBy describes the files after a failed commit. before and after apply if all files are old or all are new.
func leftBy(err error, before, after string) (state, hint string) {
	var u *conf.UnfinishedError
	if !errors.As(err, &u) {
		return before, ""
	}
	const again = "run the same command again: it finishes what was begun"
	switch {
	case len(u.New)+len(u.Edited) == 0:
		return before + ", but the journal of the change is left", again
	case len(u.Old)+len(u.Edited) == 0:
		return after + ", but what was begun is not finished", again
	}
	var parts []string
	for _, p := range []struct {
		what  string
		paths []string
	}{{"new", u.New}, {"as before", u.Old}, {"edited by another program", u.Edited}} {
		if len(p.paths) > 0 {
			parts = append(parts, p.what+": "+joinPaths(p.paths))
		}
	}
	return "the files are half changed (" + strings.Join(parts, "; ") + ")", again + "; do not restart Ant Media Server before that"
}

func notRoot() Finding {
	return newFinding(Bad, IDRoot, RootHint, "only root may change this machine's configuration")
}

// needsRoot returns a finding if only root may read the agent's files.
func (m *Machine) needsRoot(err error) (Finding, bool) {
	if m.Euid == 0 || !errors.Is(err, fs.ErrPermission) {
		return Finding{}, false
	}
	return failure(IDRoot, fmt.Errorf("only root may read what the agent keeps of this machine: %w", err), RootHint), true
}

// recordFinding returns a finding if a file of the agent is damaged or newer. way is the hint for damage.
func recordFinding(err error, way string) (Finding, bool) {
	var damaged *conf.DamagedError
	var version *conf.VersionError
	switch {
	case errors.As(err, &damaged):
		return failure(IDRecord, err, way), true
	case errors.As(err, &version):
		return failure(IDRecord, err, "run the release of amsagent that wrote it; or move the file away: 'amsagent leave' then makes this machine standalone without it"), true
	}
	return Finding{}, false
}

// ErrNotMember reports that this machine is not a node.
var ErrNotMember = errors.New("this machine is not a cluster node")
