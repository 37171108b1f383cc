// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"testing"

	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"
)

// message makes an OP_MSG, with a document sequence before the body, as no driver
// sends it but the protocol allows.
func message(flags uint32, body bsoncore.Document, sequence bool) []byte {
	var raw []byte
	raw = append(raw, make([]byte, headerLen)...)
	binary.LittleEndian.PutUint32(raw[4:], 42)
	binary.LittleEndian.PutUint32(raw[12:], opMsg)
	raw = binary.LittleEndian.AppendUint32(raw, flags)
	if sequence {
		doc := bsoncore.NewDocumentBuilder().AppendInt32("x", 1).Build()
		section := append([]byte("documents\x00"), doc...)
		raw = append(raw, 1)
		raw = binary.LittleEndian.AppendUint32(raw, uint32(4+len(section)))
		raw = append(raw, section...)
	}
	raw = append(append(raw, 0), body...)
	if flags&flagChecksumPresent != 0 {
		raw = append(raw, 1, 2, 3, 4)
	}
	binary.LittleEndian.PutUint32(raw, uint32(len(raw)))
	return raw
}

func FuzzParseRequest(f *testing.F) {
	f.Add(message(0, bsoncore.NewDocumentBuilder().AppendString("insert", "c").Build(), true))
	f.Add(replyTo(request{opcode: opQuery}, errorDocument(1, "a", "b")))
	f.Add([]byte("\x12\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xd4\x07\x00\x00\x00\x00"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		raw, err := readMessage(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		// None of these may panic.
		req := parseRequest(raw)
		_ = wantsMore(raw)
		_ = rewrite(req, raw, pollingHello)
		_ = rewrite(req, raw, replicaSetHello("rs", "a"))
	})
}
