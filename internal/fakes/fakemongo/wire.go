// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakemongo is a MongoDB without a disk: the wire protocol for replies that a test writes, and a registry in memory. It
// is for failures that a real server does not produce on demand, and for bubbles of testing/synctest. Package clustertest asks
// the registry in memory and a real mongod the same.
package fakemongo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
)

// Server implements as much of MongoDB's wire protocol as the driver needs.
type Server struct {
	// Answer returns the reply to a command. nil closes the connection, and [ErrHang] never answers.
	Answer func(name string, cmd bson.Raw) (bson.D, error)
	// Now, if not nil, is the server's clock.
	Now func() time.Time

	listener net.Listener // nil in memory

	mu       sync.Mutex
	hello    bson.D
	changed  chan struct{} // closed by the next SetHello
	commands []bson.Raw    // all but hello
	done     chan struct{}
	conns    sync.WaitGroup
}

// ErrHang is the answer that never comes.
var ErrHang = errors.New("never answer")

// OK is the reply to a command that succeeds.
func OK(extra ...bson.E) bson.D { return append(bson.D{{Key: "ok", Value: 1}}, extra...) }

// Failure is the reply to a command that fails.
func Failure(code int32, name, message string) bson.D {
	return bson.D{
		{Key: "ok", Value: 0},
		{Key: "code", Value: code},
		{Key: "codeName", Value: name},
		{Key: "errmsg", Value: message},
	}
}

// New returns a healthy standalone server that only [Server.Dial] reaches: in a bubble, it waits for nothing outside.
func New() *Server {
	s := &Server{done: make(chan struct{}), changed: make(chan struct{})}
	s.SetHello(bson.E{Key: "isWritablePrimary", Value: true})
	s.Answer = func(string, bson.Raw) (bson.D, error) { return OK(), nil }
	return s
}

// Start starts a healthy standalone server with a port; wrap may wrap its listener, for example with TLS.
func Start(t testing.TB, wrap func(net.Listener) net.Listener) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	s := New()
	s.listener = l
	if wrap != nil {
		s.listener = wrap(l)
	}
	var accept sync.WaitGroup
	accept.Go(func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			s.conns.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		accept.Wait()
		s.Close()
	})
	return s
}

// Addr is the address of a server with a port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// DialContext connects in memory.
func (s *Server) DialContext(context.Context, string, string) (net.Conn, error) {
	here, there := net.Pipe()
	s.conns.Go(func() { s.serve(there) })
	return here, nil
}

// Link is the network between one client and a server.
type Link struct {
	*Server

	Cut atomic.Bool
}

// DialContext connects in memory, unless the link is cut.
func (l *Link) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if l.Cut.Load() {
		return nil, syscall.ECONNREFUSED
	}
	conn, err := l.Server.DialContext(ctx, network, address)
	return &linked{conn, l}, err
}

type linked struct {
	net.Conn
	l *Link
}

func (c *linked) Write(b []byte) (int, error) {
	if c.l.Cut.Load() {
		return 0, syscall.ECONNRESET
	}
	return c.Conn.Write(b)
}

// Close ends all connections.
func (s *Server) Close() {
	close(s.done)
	s.conns.Wait()
}

// SetHello sets what the server says about itself.
func (s *Server) SetHello(extra ...bson.E) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hello = OK(append([]bson.E{
		{Key: "maxWireVersion", Value: 21},
		{Key: "minWireVersion", Value: 0},
		{Key: "maxBsonObjectSize", Value: 16 << 20},
		{Key: "maxMessageSizeBytes", Value: 48000000},
		{Key: "maxWriteBatchSize", Value: 100000},
		{Key: "helloOk", Value: true},
	}, extra...)...)
	close(s.changed)
	s.changed = make(chan struct{})
}

// Sent returns the commands of one name so far.
func (s *Server) Sent(name string) []bson.Raw {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []bson.Raw
	for _, c := range s.commands {
		if first, err := c.IndexErr(0); err == nil && first.Key() == name {
			found = append(found, c)
		}
	}
	return found
}

func (s *Server) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.done:
			_ = conn.Close()
		case <-stop:
		}
	}()
	const opQuery, opMsg, opReply = 2004, 2013, 1
	for {
		var head [16]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		size, id, op := int(binary.LittleEndian.Uint32(head[:])), head[4:8], binary.LittleEndian.Uint32(head[12:])
		if size < len(head) || size > 1<<20 {
			return
		}
		body := make([]byte, size-len(head))
		if _, err := io.ReadFull(conn, body); err != nil {
			return
		}
		var cmd bson.Raw
		switch op {
		case opMsg:
			cmd = bson.Raw(body[5:]) // flags, kind 0
			n := int(binary.LittleEndian.Uint32(cmd))
			cmd = withSections(cmd[:n:n], cmd[n:])
		case opQuery:
			cmd = bson.Raw(body[4+bytes.IndexByte(body[4:], 0)+1+8:])
		default:
			return
		}
		reply, hang := s.reply(cmd)
		if hang {
			<-s.done
			return
		}
		if reply == nil {
			return
		}
		doc, err := bson.Marshal(reply)
		if err != nil {
			panic(err) // no test can go on
		}
		var payload []byte
		if op == opMsg {
			payload = append(make([]byte, 5), doc...)
		} else {
			op = opReply
			payload = append(make([]byte, 20), doc...)
			payload[16] = 1 // number of documents
		}
		out := binary.LittleEndian.AppendUint32(nil, uint32(16+len(payload)))
		out = append(append(out, 0, 0, 0, 0), id...)
		out = binary.LittleEndian.AppendUint32(out, op)
		if _, err := conn.Write(append(out, payload...)); err != nil {
			return
		}
	}
}

// withSections puts the documents of a kind 1 section (the updates of an update) into the command.
func withSections(cmd bson.Raw, rest []byte) bson.Raw {
	if len(rest) < 5 || rest[0] != 1 {
		return cmd
	}
	end := bytes.IndexByte(rest[5:], 0)
	name, docs := string(rest[5:5+end]), rest[5+end+1:]
	var list bson.A
	for len(docs) > 4 {
		n := int(binary.LittleEndian.Uint32(docs))
		list = append(list, bson.Raw(docs[:n]))
		docs = docs[n:]
	}
	var whole bson.D
	if bson.Unmarshal(cmd, &whole) != nil {
		return cmd
	}
	raw, err := bson.Marshal(append(whole, bson.E{Key: name, Value: list}))
	if err != nil {
		return cmd
	}
	return raw
}

// counter returns the counter of a hello's topologyVersion, or 0.
func counter(hello bson.D) int64 {
	for _, e := range hello {
		if version, ok := e.Value.(bson.D); ok && e.Key == "topologyVersion" {
			n, _ := version[1].Value.(int64)
			return n
		}
	}
	return 0
}

func (s *Server) reply(cmd bson.Raw) (reply bson.D, hang bool) {
	first, err := cmd.IndexErr(0)
	if err != nil {
		return nil, false
	}
	name := first.Key()
	s.mu.Lock()
	hello, changed, answer := s.hello, s.changed, s.Answer
	if name == "hello" || name == "isMaster" || name == "ismaster" {
		s.mu.Unlock()
		if has, err := cmd.LookupErr("topologyVersion", "counter"); err == nil && has.Int64() == counter(hello) {
			select { // the driver waits for a change
			case <-changed:
				return s.reply(cmd)
			case <-s.done:
				return nil, false
			}
		}
		if s.Now != nil {
			hello = append(hello[:len(hello):len(hello)], bson.E{Key: "localTime", Value: s.Now()})
		}
		return hello, false
	}
	s.commands = append(s.commands, bytes.Clone(cmd))
	s.mu.Unlock()
	reply, err = answer(name, cmd)
	return reply, errors.Is(err, ErrHang)
}
