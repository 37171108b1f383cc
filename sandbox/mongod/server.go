// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/fakes/control"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// Options says how to start. The zero value is a healthy server on a free port of
// loopback with data that vanish at Close.
type Options struct {
	// Dir holds the data; it is created, and kept at Close. Empty: a temporary one.
	Dir string
	// Listen is the address of clients; default 127.0.0.1:0.
	Listen string
	// Control is the address of the HTTP control port; empty: none.
	Control string
	// Users (name to password) may do everything, and a client without a login nothing.
	// Without users no client is asked for a login. A Backend has to have them already.
	Users map[string]string
	// AuthDB is the database the users belong to; default admin.
	AuthDB string
	// TLS makes clients speak TLS.
	TLS *tls.Config
	// ReplicaSet is the name of a set of one. With Backend only hello says so.
	ReplicaSet string
	// Binary is the mongod that serves behind the proxy (realmongo.Binary).
	Binary string
	// Backend is a server that runs already and serves in place of Binary: unix:PATH or
	// HOST:PORT. Close does not end it.
	Backend string
	// Log gets the proxy's own lines; default none.
	Log *slog.Logger
}

// Server is a running sandbox MongoDB.
type Server struct {
	addr    string
	login   string // see LoginURI
	tls     *tls.Config
	proxy   *proxy
	faults  *Faults
	control *control.Server

	real    *realmongo.Set
	kept    bool // the data of real outlive it
	guard   int  // file descriptor, see bindGuard
	tmp     string
	sockets string // the folder of a real mongod's socket

	mu     sync.Mutex // protects ln and ended
	ln     net.Listener
	ended  bool
	accept sync.WaitGroup

	closing sync.Once
	closed  error
}

// Start begins to serve; when it returns, the server can be used. It runs until
// Close or until ctx is done.
func Start(ctx context.Context, o Options) (_ *Server, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.AuthDB == "" {
		o.AuthDB = "admin"
	}
	s := &Server{tls: o.TLS, kept: o.Dir != "", guard: -1}
	// Cleaning up what has been started is Close's business, half-started or not.
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()

	dir := o.Dir
	if dir == "" {
		if s.tmp, err = os.MkdirTemp("", "sandbox-mongod-"); err != nil {
			return nil, fmt.Errorf("making a folder for the data: %w", err)
		}
		dir = s.tmp
	} else if err = os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of the data: %w", err)
	}
	s.proxy = &proxy{
		log:   o.Log,
		stats: &recorder{},
		conns: map[*clientConn]struct{}{},
	}
	s.faults = newFaults(s.apply)
	s.proxy.faults = s.faults
	if s.guard, s.addr, err = bindGuard(o.Listen); err != nil {
		return nil, err
	}
	s.setLogin(o)
	switch {
	case (o.Binary != "") == (o.Backend != ""):
		err = errors.New("either a mongod or a server that runs already must be the backend")
	case o.Binary != "":
		err = s.serveReal(ctx, dir, o)
	default:
		err = s.serveBackend(o)
	}
	if err != nil {
		return nil, err
	}
	if o.Control != "" {
		if s.control, err = control.Serve(ctx, o.Control, s.handler()); err != nil {
			return nil, err
		}
	}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	return s, nil
}

// serveBackend begins to listen, with a server behind the proxy that runs already.
func (s *Server) serveBackend(o Options) error {
	s.proxy.network, s.proxy.backend = "tcp", o.Backend
	if path, ok := strings.CutPrefix(o.Backend, "unix:"); ok {
		s.proxy.network, s.proxy.backend = "unix", path
	}
	s.proxy.hello = pollingHello
	if o.ReplicaSet != "" {
		claim := replicaSetHello(o.ReplicaSet, s.addr)
		s.proxy.hello = func(doc bsoncore.Document) bsoncore.Document { return claim(pollingHello(doc)) }
	}
	return s.listen()
}

// owner is the user of a mongod by whom the users of the options are made.
const owner = "sandbox"

// serveReal begins to listen, with a real mongod behind the proxy. The proxy listens
// first: the one member of a set looks for itself under the proxy's address.
func (s *Server) serveReal(ctx context.Context, dir string, o Options) error {
	// The path of a Unix socket has room for 107 bytes.
	sockets, err := os.MkdirTemp("", "mongod-")
	if err != nil {
		return fmt.Errorf("making a folder for the socket: %w", err)
	}
	s.sockets = sockets
	s.proxy.network, s.proxy.backend = "unix", filepath.Join(sockets, "m.sock")
	s.proxy.hello = pollingHello
	if err := s.listen(); err != nil {
		return err
	}
	members := 0
	if o.ReplicaSet != "" {
		members = 1
	}
	ro := realmongo.Options{Binary: o.Binary, Dir: dir, Members: members, Name: o.ReplicaSet, Socket: s.proxy.backend, Advertise: s.addr}
	if o.Users != nil {
		ro.Users = map[string]string{owner: owner}
	}
	if s.real, err = realmongo.Start(ctx, ro); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(o.Users)) {
		if err := s.real.AddUser(ctx, o.AuthDB, name, o.Users[name]); err != nil {
			return err
		}
	}
	return nil
}

// bindGuard binds a socket to the address and never listens on it. It keeps the port while the
// listener is closed (fault refuse): the kernel answers a connect with RST, and no other process
// can take the port.
func bindGuard(addr string) (fd int, bound string, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return -1, "", fmt.Errorf("reading the listen address %q: %w", addr, err)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return -1, "", fmt.Errorf("reading the listen address %q (an IP address is needed): %w", addr, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return -1, "", fmt.Errorf("reading the listen address %q: %w", addr, err)
	}
	family, sa := unix.AF_INET, unix.Sockaddr(nil)
	if ip.Is4() {
		sa = &unix.SockaddrInet4{Port: int(n), Addr: ip.As4()}
	} else {
		family = unix.AF_INET6
		sa = &unix.SockaddrInet6{Port: int(n), Addr: ip.As16()}
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, "", fmt.Errorf("making a socket: %w", err)
	}
	// Both sockets need it, and Go's listener sets it by itself.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	var name unix.Sockaddr
	if err == nil {
		name, err = unix.Getsockname(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, "", fmt.Errorf("binding %s: %w", addr, err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		n = uint64(name.Port)
	case *unix.SockaddrInet6:
		n = uint64(name.Port)
	}
	return fd, net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

func (s *Server) listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ln != nil || s.ended {
		return nil
	}
	ln, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("listening for clients: %w", err)
	}
	s.ln = ln
	s.proxy.open()
	wrap := func(c net.Conn) net.Conn { return c }
	if s.tls != nil {
		wrap = func(c net.Conn) net.Conn { return tls.Server(c, s.tls) }
	}
	s.accept.Go(func() { s.proxy.acceptFrom(context.Background(), ln, wrap) })
	return nil
}

func (s *Server) stopListening() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ln != nil {
		_ = s.ln.Close()
		s.ln = nil
	}
}

// apply makes a mode true that concerns more than one command.
func (s *Server) apply(m Mode) {
	switch m {
	case Cut:
		s.proxy.dropAll(false)
	case Refuse:
		s.stopListening()
		s.proxy.dropAll(true)
	default:
		if err := s.listen(); err != nil {
			s.proxy.log.Error("cannot heal the server", "error", err)
		}
	}
}

// Addr is host:port for clients.
func (s *Server) Addr() string { return s.addr }

// LoginURI is a connection string with the first user's credentials, for a client of this server alone.
func (s *Server) LoginURI() string { return s.login }

// setLogin keeps the connection string of the first user, if there is one.
func (s *Server) setLogin(o Options) {
	login, source := "", ""
	if len(o.Users) > 0 {
		name := slices.Min(slices.Collect(maps.Keys(o.Users)))
		login, source = encode(name)+":"+encode(o.Users[name])+"@", "authSource="+o.AuthDB+"&"
	}
	s.login = "mongodb://" + login + s.addr + "/?" + source + "directConnection=true"
}

// encode is for names and passwords with any letter in them.
func encode(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// ControlAddr is host:port of the HTTP control port, or empty.
func (s *Server) ControlAddr() string {
	if s.control == nil {
		return ""
	}
	return s.control.Addr()
}

// URI is a connection string without credentials.
func (s *Server) URI() string {
	uri := "mongodb://" + s.addr + "/"
	if s.tls != nil {
		uri += "?tls=true"
	}
	return uri
}

// Faults switches faults on and off.
func (s *Server) Faults() *Faults { return s.faults }

// Stats counts what went through so far.
func (s *Server) Stats() Stats { return s.proxy.stats.snapshot() }

// Commands is the record of the last few thousand requests, oldest first.
func (s *Server) Commands() []Command { return s.proxy.stats.commands() }

// Close ends the server and waits for everything it started. A second Close waits
// for the first.
func (s *Server) Close() error {
	s.closing.Do(func() { s.closed = s.close() })
	return s.closed
}

func (s *Server) close() error {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()

	err := s.control.Close()
	if s.proxy != nil {
		s.stopListening()
		s.proxy.close()
		s.accept.Wait()
	}
	switch {
	case s.real != nil && s.kept:
		err = errors.Join(err, s.real.Stop())
	case s.real != nil:
		err = errors.Join(err, s.real.Close())
	}
	if s.guard >= 0 {
		_ = unix.Close(s.guard)
	}
	if s.sockets != "" {
		err = errors.Join(err, os.RemoveAll(s.sockets))
	}
	if s.tmp != "" {
		err = errors.Join(err, os.RemoveAll(s.tmp))
	}
	return err
}

// pollingHello takes out what makes a driver ask for a stream of hello replies: in
// a stream no fault would find a command to strike.
func pollingHello(doc bsoncore.Document) bsoncore.Document {
	elements, err := doc.Elements()
	if err != nil {
		return doc
	}
	b := bsoncore.NewDocumentBuilder()
	for _, e := range elements {
		if e.Key() != "topologyVersion" {
			b.AppendValue(e.Key(), e.Value())
		}
	}
	return b.Build()
}

// replicaSetHello adds what makes a driver take the server for a primary.
func replicaSetHello(set, addr string) func(bsoncore.Document) bsoncore.Document {
	return func(doc bsoncore.Document) bsoncore.Document {
		b := bsoncore.NewDocumentBuilder()
		elements, err := doc.Elements()
		if err != nil {
			return doc
		}
		b.AppendString("setName", set).
			AppendInt32("setVersion", 1).
			AppendBoolean("secondary", false).
			AppendArray("hosts", bsoncore.NewArrayBuilder().AppendString(addr).Build()).
			AppendString("primary", addr).
			AppendString("me", addr)
		for _, e := range elements {
			switch e.Key() {
			case "setName", "setVersion", "secondary", "hosts", "primary", "me":
			default:
				b.AppendValue(e.Key(), e.Value())
			}
		}
		return b.Build()
	}
}
