// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/FerretDB/FerretDB/ferretdb"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/sandbox/internal/control"
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
	// Users (name to password) turns the fake authentication on. The right
	// password completes a genuine SCRAM-SHA-256 conversation; anything else gets
	// error 18 AuthenticationFailed, and a command without login error 13
	// Unauthorized. It exists because embedded FerretDB has no authentication, and
	// an agent must be seen to tell a wrong password from a dead server. It says
	// nothing about MongoDB's roles.
	Users map[string]string
	// AuthDB is the database the users belong to; default admin.
	AuthDB string
	// TLS makes clients speak TLS.
	TLS *tls.Config
	// ReplicaSet makes hello claim to be the one member, and primary, of a replica
	// set of this name, so that a connection string with replicaSet= works.
	ReplicaSet string
	// Binary is a real mongod (realmongo.Require) that serves in place of FerretDB,
	// behind the same proxy and with the same faults. Its commands run side by side,
	// Users are real users that may do everything, with the mechanisms that mongod
	// has, and ReplicaSet, which must be "rs0" then, is a real set of one.
	Binary string
	// Backend is a server without users that runs already and serves in place of
	// FerretDB: unix:PATH or HOST:PORT. Close leaves it alone. Users and ReplicaSet
	// are played by the proxy, as with FerretDB.
	Backend string
	// Log gets the proxy's own lines and FerretDB's warnings; default none.
	Log *slog.Logger
}

// Server is a running sandbox MongoDB.
type Server struct {
	addr    string
	users   bool
	tls     *tls.Config
	proxy   *proxy
	faults  *Faults
	control *control.Server

	cancel  context.CancelFunc
	backend chan struct{} // closed when FerretDB has ended
	real    *realmongo.Set
	guard   int // file descriptor, see bindGuard
	tmp     string
	sockets string // the folder of a real mongod's socket

	mu     sync.Mutex // protects ln and ended
	ln     net.Listener
	ended  bool
	accept sync.WaitGroup

	closing sync.Once
	closed  error
}

// ferretNew serialises the constructor of FerretDB: it writes a variable of its
// own package, and tests start servers in parallel.
var ferretNew sync.Mutex

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
	s := &Server{users: o.Users != nil, tls: o.TLS, backend: make(chan struct{}), guard: -1}
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
	serve := s.serveFerret
	switch {
	case o.Binary != "" && o.Backend != "":
		return nil, errors.New("a server of its own and one that runs already cannot both be the backend")
	case o.Binary != "":
		serve = s.serveReal
	case o.Backend != "":
		serve = s.serveBackend
	}
	if err := serve(ctx, dir, o); err != nil {
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

// serveFerret begins to listen, with FerretDB behind the proxy.
func (s *Server) serveFerret(ctx context.Context, dir string, o Options) error {
	socket, err := s.startBackend(ctx, dir, o.Log)
	if err != nil {
		return err
	}
	s.proxy.network, s.proxy.backend = "unix", socket
	s.proxy.serial = true
	return s.pretend(o)
}

// serveBackend begins to listen, with a server behind the proxy that runs already.
func (s *Server) serveBackend(_ context.Context, _ string, o Options) error {
	s.proxy.network, s.proxy.backend = "tcp", o.Backend
	if path, ok := strings.CutPrefix(o.Backend, "unix:"); ok {
		s.proxy.network, s.proxy.backend = "unix", path
	}
	return s.pretend(o)
}

// pretend begins to listen, with the users and the set that the backend does not have.
func (s *Server) pretend(o Options) (err error) {
	if o.Users != nil {
		if s.proxy.auth, err = newAuthenticator(o.Users, o.AuthDB); err != nil {
			return err
		}
	}
	s.proxy.hello = pollingHello
	if o.ReplicaSet != "" {
		claim := replicaSetHello(o.ReplicaSet, s.addr)
		s.proxy.hello = func(doc bsoncore.Document) bsoncore.Document { return claim(pollingHello(doc)) }
	}
	return s.listen()
}

// serveReal begins to listen, with a real mongod behind the proxy. The proxy listens
// first: the one member of a set looks for itself under the proxy's address.
func (s *Server) serveReal(ctx context.Context, dir string, o Options) error {
	if o.ReplicaSet != "" && o.ReplicaSet != realmongo.SetName {
		return fmt.Errorf("a real replica set is called %s, not %q", realmongo.SetName, o.ReplicaSet)
	}
	if o.AuthDB != "admin" {
		return fmt.Errorf("the users of a real mongod belong to the database admin, not to %q", o.AuthDB)
	}
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
	s.real, err = realmongo.Start(ctx, realmongo.Options{
		Binary: o.Binary, Dir: dir, Members: members, Users: o.Users, Socket: s.proxy.backend, Advertise: s.addr,
	})
	return err
}

// startBackend runs FerretDB on an abstract Unix socket: no second TCP port that
// could be used past the proxy, and no file that a killed process leaves behind.
func (s *Server) startBackend(ctx context.Context, dir string, log *slog.Logger) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolving the folder of the data: %w", err)
	}
	if strings.ContainsAny(abs, "%?#") {
		return "", fmt.Errorf("the folder of the data %q has one of %%?# in its name, which FerretDB takes for syntax", abs)
	}
	socket := "@amsagent-sandbox-" + rand.Text()
	ferretNew.Lock()
	f, err := ferretdb.New(&ferretdb.Config{
		Listener: ferretdb.ListenerConfig{Unix: socket},
		Logger:   slog.New(warnings{log.Handler()}),
		Handler:  "sqlite",
		// Without fsync data still survive a killed process, not a power cut; a
		// busy disk would otherwise make every test slow.
		SQLiteURL: (&url.URL{Scheme: "file", OmitHost: true, Path: abs + "/", RawQuery: "_pragma=synchronous(off)"}).String(),
	})
	ferretNew.Unlock()
	if err != nil {
		return "", fmt.Errorf("starting FerretDB: %w", err)
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	go func() {
		defer close(s.backend)
		_ = f.Run(run) // it ends with its context, and never otherwise
	}()
	return socket, nil
}

// warnings drops FerretDB's chatter below warning level.
type warnings struct{ slog.Handler }

func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}
func (w warnings) WithAttrs(a []slog.Attr) slog.Handler { return warnings{w.Handler.WithAttrs(a)} }
func (w warnings) WithGroup(n string) slog.Handler      { return warnings{w.Handler.WithGroup(n)} }

// bindGuard binds a socket to the address and never listens on it. While the
// listener proper is closed (fault refuse) the port so remains ours: the kernel
// answers a connect with RST, and gives the port to nobody else.
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
			s.proxy.log.Error("cannot heal the server", "err", err)
		}
	}
}

// Addr is host:port for clients.
func (s *Server) Addr() string { return s.addr }

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
	if s.cancel != nil {
		s.cancel()
		<-s.backend
	}
	if s.real != nil {
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
