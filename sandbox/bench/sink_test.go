// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
)

// A server that speaks just enough of MongoDB's protocol to take beats, from
// memory: what a database takes for ten thousand of them would hide what the
// agents take.

// sinkVariable turns this test binary into that server.
const sinkVariable = "AMSAGENT_BENCH_SINK"

func TestMain(m *testing.M) {
	if os.Getenv(sinkVariable) == "" {
		os.Exit(m.Run())
	}
	if err := serveSink(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// startSink starts it in a process of its own.
func startSink(b *testing.B) (addr string, pid int) {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), sinkVariable+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe() // it ends with us
	must.OK(b, err)
	out, err := cmd.StdoutPipe()
	must.OK(b, err)
	must.OK(b, cmd.Start())
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	if _, err := fmt.Fscanln(out, &addr); err != nil {
		b.Fatalf("the server did not start: %v", err)
	}
	return addr, cmd.Process.Pid
}

func serveSink() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	var rows sync.Map // id -> *atomic.Int64, the updates
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go sink(c, &rows)
		}
	}()
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

const (
	opReply = 1
	opQuery = 2004
	opMsg   = 2013
	header  = 16
)

func sink(c net.Conn, rows *sync.Map) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		var head [header]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		n := binary.LittleEndian.Uint32(head[:])
		if n < header || n > 1<<20 {
			return
		}
		body := make([]byte, n-header)
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		answer, err := answerTo(binary.LittleEndian.Uint32(head[12:]), body, rows)
		if err != nil {
			fmt.Fprintln(os.Stderr, "sink:", err)
			return
		}
		out := make([]byte, header, header+len(answer))
		binary.LittleEndian.PutUint32(out, uint32(header+len(answer)))
		copy(out[8:12], head[4:8])
		op := uint32(opMsg)
		if binary.LittleEndian.Uint32(head[12:]) == opQuery {
			op = opReply
		}
		binary.LittleEndian.PutUint32(out[12:], op)
		if _, err := c.Write(append(out, answer...)); err != nil {
			return
		}
	}
}

// answerTo gives the body of the answer.
func answerTo(op uint32, body []byte, rows *sync.Map) ([]byte, error) {
	switch op {
	case opQuery: // of a driver that does not know yet whom it talks to
		doc, err := bson.Marshal(hello())
		return append([]byte{8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}, doc...), err
	case opMsg:
	default:
		return nil, fmt.Errorf("message of kind %d", op)
	}
	const flags, kind = 4, 1
	if len(body) < flags+kind || body[flags] != 0 {
		return nil, errors.New("a message without a body")
	}
	request := bson.Raw(body[flags+kind:])
	first, err := request.IndexErr(0)
	if err != nil {
		return nil, err
	}
	var doc any
	switch first.Key() {
	case "hello", "isMaster", "ismaster":
		doc = hello()
	case "update":
		id, ok := request.Lookup("updates", "0", "q", "_id").StringValueOK()
		if !ok || request.Lookup("updates", "0", "u", "$set", "load").Type != bson.TypeEmbeddedDocument {
			return nil, fmt.Errorf("an update that is no beat: %s", request)
		}
		n, _ := rows.LoadOrStore(id, new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
		doc = bson.D{{Key: "n", Value: 1}, {Key: "nModified", Value: 1}, {Key: "ok", Value: 1.0}}
	default:
		doc = bson.D{{Key: "ok", Value: 1.0}}
	}
	b, err := bson.Marshal(doc)
	return append([]byte{0, 0, 0, 0, 0}, b...), err
}

func hello() bson.D {
	return bson.D{
		{Key: "ismaster", Value: true},
		{Key: "isWritablePrimary", Value: true},
		{Key: "helloOk", Value: true},
		{Key: "maxBsonObjectSize", Value: 16 << 20},
		{Key: "maxMessageSizeBytes", Value: 48_000_000},
		{Key: "maxWriteBatchSize", Value: 100_000},
		{Key: "localTime", Value: time.Now()},
		{Key: "minWireVersion", Value: 0},
		{Key: "maxWireVersion", Value: 21},
		{Key: "ok", Value: 1.0},
	}
}
