// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/address"

	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/redact"
)

// Kind classifies failures by the operator's next step.
type Kind string

// The kinds of failures.
const (
	KindDNS         Kind = "dns"
	KindRefused     Kind = "refused" // no listener, or a firewall rejects
	KindUnreachable Kind = "unreachable"
	KindTimeout     Kind = "timeout"    // dropped packets, or an overloaded server
	KindLost        Kind = "lost"       // a write may have happened
	KindTLS         Kind = "tls"        // certificates, or TLS on one side only
	KindAuth        Kind = "auth"       // user name, password or mechanism
	KindForbidden   Kind = "forbidden"  // not allowed, with or without a login
	KindNotPrimary  Kind = "notprimary" // no writes, or no primary
	KindUnsupported Kind = "unsupported"
	KindConfig      Kind = "config" // an unusable connection string
	KindCanceled    Kind = "canceled"
	KindOther       Kind = "other"
)

// Refusal reports whether the failure persists until an operator acts.
func (k Kind) Refusal() bool {
	return slices.Contains([]Kind{KindAuth, KindForbidden, KindConfig, KindUnsupported}, k)
}

// Passes reports whether the failure may end by itself. A write may have been done.
func (k Kind) Passes() bool {
	return slices.Contains([]Kind{KindNotPrimary, KindRefused, KindUnreachable, KindLost, KindTimeout, KindDNS}, k)
}

// Error is a failed call to MongoDB, without secrets.
type Error struct {
	Kind Kind
	Op   string // such as "reading the nodes"
	Host string // host:port, comma-separated
	// errors.Is finds the original.
	Err error
	// Hint is what to do if it is not what the kind says.
	Hint string

	noLogin bool // the server requires a login
}

func (e *Error) Error() string {
	s := e.Op + ": " + e.Summary()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

var summaries = map[Kind]string{
	KindDNS:         "DNS does not find %s",
	KindRefused:     "%s refused the connection",
	KindUnreachable: "%s cannot be reached",
	KindTimeout:     "%s did not answer in time",
	KindLost:        "the connection to %s was cut",
	KindTLS:         "no TLS connection to %s",
	KindAuth:        "%s refused the user name or the password",
	KindForbidden:   "%s does not allow it to this user",
	KindNotPrimary:  "%s takes no writes: it is not the primary of its replica set",
	KindUnsupported: "%s does not implement it",
	KindConfig:      "the connection string cannot be used",
	KindCanceled:    "interrupted",
	KindOther:       "%s answered with an error",
}

// Summary omits the cause.
func (e *Error) Summary() string {
	at := "MongoDB"
	if e.Host != "" {
		at += " at " + e.Host
	}
	if e.Kind == KindForbidden && e.noLogin {
		return at + " asks for a login, and the address has none"
	}
	return strings.Replace(summaries[e.Kind], "%s", at, 1)
}

// KindOf returns the kind of err's first [Error], or "".
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return ""
}

// redactedError keeps the original in a function, because fmt would print a field.
type redactedError struct {
	text string
	is   func(target error) bool
}

func (e *redactedError) Error() string        { return e.text }
func (e *redactedError) Is(target error) bool { return e.is(target) }

// newError asks w for the cause: the driver only reports that its server selection timed out.
func newError(op string, err error, t Target, w *watch) *Error {
	f := finding{kind: kindOf(err), host: t.hostList(), text: innermost(err)}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && f.kind == KindDNS {
		f.host = dns.Name
	}
	answered := slices.ContainsFunc(mongo.ErrorCodes(err), func(code int) bool { return code != 0 })
	if w != nil && !answered && (mongo.IsTimeout(err) || f.kind == KindLost || f.kind == KindOther) {
		if known, ok := w.finding(t); ok {
			f = known
		}
	}
	return &Error{
		Kind: f.kind, Op: op, Host: f.host, Hint: f.hint, noLogin: f.kind == KindForbidden && !t.HasCredentials() && t.option("authMechanism") == "",
		Err: &redactedError{
			text: message(redact.Text(f.text, t.Secrets()...)),
			is:   func(target error) bool { return errors.Is(err, target) },
		},
	}
}

// importance: a wrong password explains more than a timeout.
var importance = []Kind{
	KindOther, KindTimeout, KindUnreachable, KindDNS, KindRefused, KindLost, KindNotPrimary, KindUnsupported, KindTLS, KindForbidden, KindAuth,
}

const atlas = 8000 // of Atlas's proxy, for all that it refuses

// codes are from the server's error_codes.yml.
var codes = map[int]Kind{
	18: KindAuth, 11: KindAuth, // AuthenticationFailed, UserNotFound
	13: KindForbidden, atlas: KindForbidden, // Unauthorized
	// CommandNotFound, CommandNotSupported, NotImplemented, MechanismUnavailable, unknown stage
	59: KindUnsupported, 115: KindUnsupported, 238: KindUnsupported, 334: KindUnsupported, 40324: KindUnsupported,
	// Not primary, stepping down, starting, stopping.
	10107: KindNotPrimary, 13435: KindNotPrimary, 10058: KindNotPrimary, 11602: KindNotPrimary,
	189: KindNotPrimary, 13436: KindNotPrimary, 91: KindNotPrimary, 11600: KindNotPrimary,
	50: KindTimeout, 262: KindTimeout, 89: KindTimeout, // MaxTimeMSExpired, ExceededTimeLimit, NetworkTimeout
}

func kindOf(err error) Kind {
	if errors.Is(err, context.Canceled) {
		return KindCanceled
	}
	if errors.Is(err, errMember) {
		return KindNotPrimary
	}
	for _, code := range mongo.ErrorCodes(err) {
		if code == atlas && strings.Contains(err.Error(), "bad auth") {
			return KindAuth
		}
		if k, known := codes[code]; known {
			return k
		}
	}
	return kindOfNetwork(err)
}

func kindOfNetwork(err error) Kind {
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
	}
	_, isDNS := errors.AsType[*net.DNSError](err)
	switch {
	case isDNS:
		return KindDNS
	case strings.Contains(err.Error(), "tls: "): // few errors of crypto/tls have a type, all have this prefix
		return KindTLS
	case is(syscall.ECONNREFUSED):
		return KindRefused
	case is(syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EADDRNOTAVAIL, syscall.EACCES, syscall.EPERM):
		return KindUnreachable
	case is(syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed):
		return KindLost
	case mongo.IsTimeout(err):
		return KindTimeout
	case mongo.IsNetworkError(err), waited(err):
		return KindLost
	}
	return KindOther
}

// waited reports whether a call was not sent: the server's pool was cleared.
func waited(err error) bool {
	var dropped interface{ Retryable() bool } // the driver's type is not public
	return errors.As(err, &dropped) && dropped.Retryable()
}

// message removes the command, which has session and signed cluster time.
func message(text string) string {
	const refused = " to execute command { "
	if before, command, found := strings.Cut(text, refused); found {
		name, _, _ := strings.Cut(command, ":")
		text = before + " to execute command " + name
	}
	return plain.Truncate(text, maxMessage)
}

// innermost: the driver wraps "connection refused" in three sentences about topology.
func innermost(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Error()
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.Error()
	}
	if cert, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return cert.Error()
	}
	if ce, ok := errors.AsType[mongo.CommandError](err); ok && ce.Message != "" && ce.Code != 0 {
		return strings.TrimPrefix(ce.Name+": "+ce.Message, ": ")
	}
	if we, ok := errors.AsType[mongo.WriteException](err); ok && len(we.WriteErrors) > 0 {
		// Error() would include details such as a collection's validator.
		return "write error " + strconv.Itoa(we.WriteErrors[0].Code) + ": " + we.WriteErrors[0].Message
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return context.DeadlineExceeded.Error()
	}
	return err.Error()
}

// watch has each server's last report by host:port.
type watch struct {
	mu    sync.Mutex
	known map[string]server
}

type server struct {
	failed error                   // nil after an answer
	seen   event.ServerDescription // the last answer
}

func newWatch() *watch { return &watch{known: map[string]server{}} }

func (w *watch) servers() *event.ServerMonitor {
	return &event.ServerMonitor{
		ServerHeartbeatFailed: func(e *event.ServerHeartbeatFailedEvent) {
			// The driver cancels its monitor when a call fails: pools gets that error.
			if !errors.Is(e.Failure, context.Canceled) {
				w.report(e.ConnectionID, func(s *server) { s.failed = e.Failure })
			}
		},
		ServerHeartbeatSucceeded: func(e *event.ServerHeartbeatSucceededEvent) {
			w.report(e.ConnectionID, func(s *server) { *s = server{seen: e.Reply} })
		},
	}
}

func (w *watch) pools() *event.PoolMonitor {
	return &event.PoolMonitor{Event: func(e *event.PoolEvent) {
		if e.Type == event.ConnectionPoolCleared && e.Error != nil {
			w.report(e.Address, func(s *server) { s.failed = e.Error })
		}
	}}
}

// report takes an address or the driver's name of a connection, host:port[-5].
func (w *watch) report(connection string, change func(*server)) {
	host, _, _ := strings.Cut(connection, "[-")
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.known[host]
	change(&s)
	w.known[host] = s
}

// member prefers a member of a replica set.
func (w *watch) member() (d event.ServerDescription) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.known {
		if d = s.seen; d.SetName != "" {
			break
		}
	}
	return d
}

// describe returns what a server says of itself.
func describe(d event.ServerDescription) string {
	of := " of replica set " + d.SetName
	if d.Kind != "RSPrimary" && d.Primary != "" {
		of += ", whose primary is " + d.Primary.String()
	} else if d.Kind != "RSPrimary" {
		of += ", which has no primary"
	}
	switch {
	case !strings.HasPrefix(d.Kind, "RS"):
		return "a single server" // or a router
	case d.Kind == "RSGhost":
		return "a member of a replica set that is not initiated, or that removed it"
	case !slices.Contains(d.Members, d.CanonicalAddr):
		return "a hidden member" + of
	}
	kinds := map[string]string{"RSPrimary": "the primary", "RSSecondary": "a secondary", "RSArbiter": "an arbiter"}
	return cmp.Or(kinds[d.Kind], "a starting or recovering member") + of
}

// serves reports whether the driver uses a server that answered: of a replica set it drops what the set calls otherwise.
func (t Target) serves(host string, d event.ServerDescription) bool {
	set := t.option("replicaSet")
	if !strings.HasPrefix(d.Kind, "RS") {
		return set == ""
	}
	isDirect := t.namesOne() || t.option("directConnection") == "true"
	return d.Kind == "RSPrimary" && (set == "" || set == d.SetName) && (isDirect || slices.Contains(d.Members, address.Address(host)))
}

// hintTLS is for a server that cuts the connection before its first answer. Neither side reports that only one uses TLS.
func (t Target) hintTLS() string {
	if t.UsesTLS() {
		return "if it happens each time, the server has no TLS: take tls=true out of the address, or set net.tls in mongod.conf"
	}
	return "if it happens each time, the server requires TLS: add tls=true to the address"
}

type finding struct {
	kind             Kind
	host, text, hint string
}

// finding is what the members say: of themselves, and which one is the primary.
func (w *watch) finding(t Target) (finding, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	set := t.option("replicaSet")
	primaries := map[string]string{}
	var all []finding
	for host, s := range w.known {
		f := finding{kind: KindNotPrimary, host: host, text: "it is " + describe(s.seen)}
		switch me := s.seen.CanonicalAddr.String(); {
		case s.failed != nil:
			f.kind, f.text = kindOf(s.failed), innermost(s.failed)
			if f.kind == KindLost && s.seen.Kind == "" {
				f.hint = t.hintTLS()
			}
		case t.serves(host, s.seen):
			return finding{}, false
		case set != "" && set != s.seen.SetName && s.seen.Kind != "RSGhost":
			f.kind = KindConfig // the driver drops servers of other sets
		default:
			primaries[s.seen.Primary.String()] = s.seen.SetName
			if me != "" && me != host {
				f.text += ", and calls itself " + me
			}
		}
		all = append(all, f)
	}
	if len(all) == 0 {
		return finding{}, false
	}
	// Members that know the primary wait for nothing: why that one cannot be reached is the cause.
	lead := func(f finding) int {
		if primaries[f.host] != "" && f.kind != KindNotPrimary {
			return len(importance)
		}
		return slices.Index(importance, f.kind)
	}
	slices.SortFunc(all, func(a, b finding) int {
		return cmp.Or(lead(b)-lead(a), strings.Compare(a.host, b.host))
	})
	best := all[0]
	var hosts, texts []string
	for _, f := range all {
		if f.kind == best.kind {
			hosts = append(hosts, f.host)
		}
		texts = append(texts, f.host+": "+f.text)
	}
	if name := primaries[best.host]; name != "" && !t.SRV() && !slices.Contains(t.addresses(), best.host) {
		best.hint = "replica set " + name + " calls its members by names or addresses of their own, which drivers then use: " +
			"every node must resolve and reach them, or rs.reconfig() gives the members others"
	}
	best.host = strings.Join(hosts, ", ")
	if len(all) > 1 {
		best.text = strings.Join(texts, "; ")
	}
	if best.kind == KindConfig {
		best.text = "no server belongs to replica set " + set + ": " + best.text
	}
	return best, true
}
