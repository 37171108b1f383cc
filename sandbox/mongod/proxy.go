// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"
)

// proxy stands between the clients and a mongod. Each client connection has a
// backend connection of its own, because the backend keeps state per connection.
type proxy struct {
	network string // the backend's: unix or tcp
	backend string // its address
	faults  *Faults
	hello   func(bsoncore.Document) bsoncore.Document
	log     *slog.Logger
	stats   *recorder

	mu    sync.Mutex
	conns map[*clientConn]struct{}
	// shut turns away a connection that was accepted before its listener was
	// closed and came here after the others had been cut.
	shut bool
	wg   sync.WaitGroup
}

type clientConn struct {
	net    net.Conn
	raw    net.Conn // below TLS
	cancel context.CancelFunc
}

// acceptFrom serves ln until it is closed.
func (p *proxy) acceptFrom(ctx context.Context, ln net.Listener, wrap func(net.Conn) net.Conn) {
	for {
		raw, err := ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, most likely: it passes, or the test ends.
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
				continue
			}
		}
		connCtx, cancel := context.WithCancel(ctx)
		c := &clientConn{raw: raw, net: wrap(raw), cancel: cancel}
		p.mu.Lock()
		if p.shut {
			p.mu.Unlock()
			cancel()
			_ = raw.Close()
			continue
		}
		p.conns[c] = struct{}{}
		p.wg.Add(1)
		p.mu.Unlock()
		p.stats.opened()
		go func() {
			defer p.wg.Done()
			err := p.serve(connCtx, c)
			p.drop(c, false)
			p.log.Debug("connection ended", "client", raw.RemoteAddr().String(), "error", err)
		}()
	}
}

// drop closes one connection, with RST when reset is set.
func (p *proxy) drop(c *clientConn, reset bool) {
	p.mu.Lock()
	_, known := p.conns[c]
	delete(p.conns, c)
	p.mu.Unlock()
	if !known {
		return
	}
	p.stats.closed()
	c.cancel()
	if tcp, ok := c.raw.(*net.TCPConn); ok && reset {
		_ = tcp.SetLinger(0)
	}
	_ = c.raw.Close()
}

// dropAll cuts every connection; with shut, those on their way in too.
func (p *proxy) dropAll(shut bool) {
	p.mu.Lock()
	p.shut = shut
	all := make([]*clientConn, 0, len(p.conns))
	for c := range p.conns {
		all = append(all, c)
	}
	p.mu.Unlock()
	for _, c := range all {
		p.drop(c, true)
	}
}

// open lets connections in again after dropAll(true).
func (p *proxy) open() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = false
}

// close ends all connections and waits for their goroutines.
func (p *proxy) close() {
	p.dropAll(true)
	p.wg.Wait()
}

var (
	errStruck = errors.New("cut by a fault")
	errHungUp = errors.New("the client hung up")
)

func (p *proxy) serve(ctx context.Context, c *clientConn) error {
	backend, err := (&net.Dialer{}).DialContext(ctx, p.network, p.backend)
	if err != nil {
		return fmt.Errorf("connecting to the backend: %w", err)
	}
	defer backend.Close()
	// A cut from outside closes the client's socket only; this frees a goroutine
	// that waits for the backend.
	stop := context.AfterFunc(ctx, func() { _ = backend.Close() })
	defer stop()

	// Reading goes on while a request is worked on: only so is a client noticed
	// that hangs up while a fault holds its request.
	requests := make(chan []byte)
	gone := make(chan struct{})
	var hungUp error // set before gone is closed
	p.wg.Go(func() {
		fromClient := bufio.NewReader(c.net)
		for {
			raw, err := readMessage(fromClient)
			if err != nil {
				hungUp = err
				close(gone)
				return
			}
			select {
			case requests <- raw:
			case <-ctx.Done():
				return
			}
		}
	})

	fromBackend := bufio.NewReader(backend)
	for {
		select {
		case raw := <-requests:
			if err := p.one(ctx, c, parseRequest(raw), raw, backend, fromBackend, gone); err != nil {
				return err
			}
		case <-gone:
			return hungUp
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// one handles one request: fault, execution, reply.
func (p *proxy) one(ctx context.Context, c *clientConn, req request, raw []byte,
	backend net.Conn, fromBackend *bufio.Reader, gone <-chan struct{},
) error {
	fault, changed := p.faults.strike(req.command, req.db)
	p.stats.received(req, fault.Mode)
	switch fault.Mode {
	case Delay:
		select {
		case <-time.After(fault.Delay):
		case <-changed:
		case <-gone:
			return errHungUp // it lost patience: must not be executed any more
		case <-ctx.Done():
			return ctx.Err()
		}
	case Cut:
		return errStruck // the connections are closed already
	case BlackHole:
		select {
		case <-changed:
		case <-gone:
		case <-ctx.Done():
		}
		p.drop(c, true)
		return errStruck
	case Error:
		if req.moreToCome {
			return nil // the client does not read a reply
		}
		_, err := c.net.Write(replyTo(req, fault.document()))
		return err
	}

	replies, err := p.execute(req, raw, backend, fromBackend)
	if err != nil {
		return err
	}
	for _, reply := range replies {
		if fault.Mode == CutReply {
			p.drop(c, true)
			return errStruck
		}
		if _, err := c.net.Write(reply); err != nil {
			return err
		}
	}
	return nil
}

// execute gets the replies to one request.
func (p *proxy) execute(req request, raw []byte, backend net.Conn, fromBackend *bufio.Reader) ([][]byte, error) {
	if _, err := backend.Write(raw); err != nil {
		return nil, fmt.Errorf("passing a request on: %w", err)
	}
	if req.moreToCome {
		return nil, nil // an unacknowledged write is not answered
	}
	var replies [][]byte
	for {
		reply, err := readMessage(fromBackend)
		if err != nil {
			return nil, fmt.Errorf("reading the reply of the backend: %w", err)
		}
		if isHello(req.command) {
			reply = rewrite(req, reply, p.hello)
		}
		replies = append(replies, reply)
		if !wantsMore(reply) {
			return replies, nil
		}
	}
}

func isHello(command string) bool {
	return command == "hello" || command == "isMaster" || command == "ismaster"
}

func rewrite(req request, reply []byte, change func(bsoncore.Document) bsoncore.Document) []byte {
	doc := bodyOfReply(reply)
	if doc == nil {
		return reply
	}
	changed := change(doc)
	if &changed[0] == &doc[0] {
		return reply
	}
	return replyTo(req, changed)
}

func (f Fault) document() bsoncore.Document {
	code, name, message := f.Code, f.Name, f.Message
	if code == 0 {
		code, name = 91, "ShutdownInProgress"
	}
	if message == "" {
		message = "The server is in quiesce mode and will shut down"
	}
	return errorDocument(code, name, message)
}
