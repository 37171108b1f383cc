// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"
)

// The part of MongoDB's wire protocol that a proxy has to know: every message
// starts with its own length, and two kinds of request carry a command document.
const (
	headerLen = 16
	// maxMessage is the limit of the protocol itself (maxMessageSizeBytes).
	maxMessage = 48_000_000

	opReply = 1
	opQuery = 2004
	opMsg   = 2013

	flagChecksumPresent = 1 << 0
	flagMoreToCome      = 1 << 1
)

var errMalformed = errors.New("malformed message")

// readMessage reads one whole message, header included.
func readMessage(r *bufio.Reader) ([]byte, error) {
	head, err := r.Peek(4)
	if err != nil {
		return nil, err
	}
	n := int(int32(binary.LittleEndian.Uint32(head)))
	if n < headerLen || n > maxMessage {
		return nil, fmt.Errorf("%w: length %d", errMalformed, n)
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// request is what the proxy understands of one request. A request that it does
// not understand has an empty command and is passed on as it is.
type request struct {
	id         int32
	opcode     int32
	moreToCome bool // the client wants no reply (unacknowledged write)
	command    string
	db         string
	collection string
	body       bsoncore.Document
}

func parseRequest(raw []byte) request {
	req := request{
		id:     int32(binary.LittleEndian.Uint32(raw[4:])),
		opcode: int32(binary.LittleEndian.Uint32(raw[12:])),
	}
	switch req.opcode {
	case opMsg:
		req.body = bodyOfMsg(raw)
		if len(raw) >= headerLen+4 {
			req.moreToCome = binary.LittleEndian.Uint32(raw[headerLen:])&flagMoreToCome != 0
		}
	case opQuery:
		// flags, full collection name, skip, limit, document
		rest := raw[headerLen:]
		if len(rest) < 4 {
			return req
		}
		name, rest, ok := cstring(rest[4:])
		if !ok || len(rest) < 8 {
			return req
		}
		if doc, _, ok := bsoncore.ReadDocument(rest[8:]); ok {
			req.body = doc
		}
		for i := range name {
			if name[i] == '.' {
				req.db = name[:i]
				break
			}
		}
	}
	if len(req.body) == 0 {
		return req
	}
	first, err := req.body.IndexErr(0)
	if err != nil {
		return req
	}
	req.command = first.Key()
	if s, ok := first.Value().StringValueOK(); ok {
		req.collection = s
	}
	if s, ok := req.body.Lookup("$db").StringValueOK(); ok {
		req.db = s
	}
	// A getMore names its collection in a field of its own.
	if s, ok := req.body.Lookup("collection").StringValueOK(); ok && req.command == "getMore" {
		req.collection = s
	}
	return req
}

// bodyOfMsg finds the one section of kind 0, the command document.
func bodyOfMsg(raw []byte) bsoncore.Document {
	rest := raw[headerLen:]
	if len(rest) < 4 {
		return nil
	}
	flags := binary.LittleEndian.Uint32(rest)
	rest = rest[4:]
	if flags&flagChecksumPresent != 0 && len(rest) >= 4 {
		rest = rest[:len(rest)-4]
	}
	for len(rest) > 0 {
		kind := rest[0]
		rest = rest[1:]
		switch kind {
		case 0:
			doc, _, ok := bsoncore.ReadDocument(rest)
			if !ok {
				return nil
			}
			return doc
		case 1:
			if len(rest) < 4 {
				return nil
			}
			n := int(int32(binary.LittleEndian.Uint32(rest)))
			if n < 4 || n > len(rest) {
				return nil
			}
			rest = rest[n:]
		default:
			return nil
		}
	}
	return nil
}

func cstring(b []byte) (string, []byte, bool) {
	for i := range b {
		if b[i] == 0 {
			return string(b[:i]), b[i+1:], true
		}
	}
	return "", nil, false
}

// bodyOfReply is the document of a reply of either kind.
func bodyOfReply(raw []byte) bsoncore.Document {
	switch int32(binary.LittleEndian.Uint32(raw[12:])) {
	case opMsg:
		return bodyOfMsg(raw)
	case opReply:
		// flags, cursor id, starting from, number returned, documents
		if len(raw) < headerLen+20 {
			return nil
		}
		if doc, _, ok := bsoncore.ReadDocument(raw[headerLen+20:]); ok {
			return doc
		}
	}
	return nil
}

// replyTo wraps doc as the answer to req, in the envelope that fits its opcode.
func replyTo(req request, doc bsoncore.Document) []byte {
	raw := make([]byte, headerLen, headerLen+20+len(doc))
	binary.LittleEndian.PutUint32(raw[8:], uint32(req.id))
	if req.opcode == opQuery {
		binary.LittleEndian.PutUint32(raw[12:], opReply)
		var fixed [20]byte
		binary.LittleEndian.PutUint32(fixed[16:], 1) // one document
		raw = append(raw, fixed[:]...)
	} else {
		binary.LittleEndian.PutUint32(raw[12:], opMsg)
		raw = append(raw, 0, 0, 0, 0, 0) // no flags, section of kind 0
	}
	raw = append(raw, doc...)
	binary.LittleEndian.PutUint32(raw, uint32(len(raw)))
	return raw
}

// wantsMore reports whether the server announced another reply to the same request.
func wantsMore(raw []byte) bool {
	return int32(binary.LittleEndian.Uint32(raw[12:])) == opMsg && len(raw) >= headerLen+4 &&
		binary.LittleEndian.Uint32(raw[headerLen:])&flagMoreToCome != 0
}

// errorDocument is a command error as mongod words it.
func errorDocument(code int32, name, message string) bsoncore.Document {
	return bsoncore.NewDocumentBuilder().
		AppendDouble("ok", 0).
		AppendString("errmsg", message).
		AppendInt32("code", code).
		AppendString("codeName", name).
		Build()
}
