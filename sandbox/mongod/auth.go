// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod

import (
	"crypto/rand"
	"fmt"

	"github.com/xdg-go/scram"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"
)

// mechanism is the one that is played; a driver left to choose takes it when the
// hello reply offers it.
const mechanism = "SCRAM-SHA-256"

// iterations is the least that drivers accept (mongod uses 15000): every test
// pays it for every connection.
const iterations = 4096

// authenticator is the server's half of SCRAM-SHA-256. It is a fake in this
// sense: the conversation and its cryptography are real, but behind it there are
// no roles, and FerretDB never learns who is asking.
type authenticator struct {
	db     string // the database that users belong to
	server *scram.Server
	users  map[string]scram.StoredCredentials
}

// authState belongs to one connection.
type authState struct {
	conversation *scram.ServerConversation
	skipEmpty    bool
	in           bool
}

func newAuthenticator(users map[string]string, db string) (*authenticator, error) {
	a := &authenticator{db: db, users: make(map[string]scram.StoredCredentials, len(users))}
	for name, password := range users {
		client, err := scram.SHA256.NewClient(name, password, "")
		if err != nil {
			return nil, fmt.Errorf("preparing credentials of a user: %w", err)
		}
		salt := make([]byte, 28)
		_, _ = rand.Read(salt) // never fails
		stored, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: string(salt), Iters: iterations})
		if err != nil {
			return nil, fmt.Errorf("preparing credentials of a user: %w", err)
		}
		a.users[name] = stored
	}
	server, err := scram.SHA256.NewServer(func(name string) (scram.StoredCredentials, error) {
		stored, ok := a.users[name]
		if !ok {
			return scram.StoredCredentials{}, fmt.Errorf("no such user")
		}
		return stored, nil
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the fake authentication: %w", err)
	}
	a.server = server
	return a, nil
}

// answer returns the reply to req, or nil when FerretDB shall answer it.
func (a *authenticator) answer(s *authState, req request) bsoncore.Document {
	switch req.command {
	case "saslStart":
		return a.start(s, req)
	case "saslContinue":
		return a.proceed(s, req)
	case "logout":
		s.in = false
		return nil
	case "hello", "isMaster", "ismaster", "ping", "buildInfo", "buildinfo":
		return nil // a server answers these to anybody
	}
	if !s.in {
		return errorDocument(13, "Unauthorized", "Command "+req.command+" requires authentication")
	}
	return nil
}

// refused is the one answer to every mistake: a server does not tell a wrong
// password from an unknown user.
func (s *authState) refused() bsoncore.Document {
	s.conversation, s.in = nil, false
	return errorDocument(18, "AuthenticationFailed", "Authentication failed.")
}

func (a *authenticator) start(s *authState, req request) bsoncore.Document {
	s.conversation, s.in = nil, false
	if mech, _ := req.body.Lookup("mechanism").StringValueOK(); mech != mechanism || req.db != a.db {
		return s.refused()
	}
	s.skipEmpty, _ = req.body.Lookup("options", "skipEmptyExchange").BooleanOK()
	s.conversation = a.server.NewConversation()
	return s.step(req)
}

func (a *authenticator) proceed(s *authState, req request) bsoncore.Document {
	if s.conversation == nil {
		return errorDocument(17, "ProtocolError", "No SASL session state found")
	}
	if s.in {
		// The empty last message of a client that does not skip it.
		s.conversation = nil
		return saslReply(nil, true)
	}
	return s.step(req)
}

func (s *authState) step(req request) bsoncore.Document {
	_, payload, ok := req.body.Lookup("payload").BinaryOK()
	if !ok {
		return s.refused()
	}
	out, err := s.conversation.Step(string(payload))
	if err != nil {
		return s.refused()
	}
	if !s.conversation.Done() {
		return saslReply([]byte(out), false)
	}
	if !s.conversation.Valid() {
		return s.refused()
	}
	s.in = true
	if s.skipEmpty {
		s.conversation = nil
	}
	return saslReply([]byte(out), s.skipEmpty)
}

func saslReply(payload []byte, done bool) bsoncore.Document {
	return bsoncore.NewDocumentBuilder().
		AppendInt32("conversationId", 1).
		AppendBoolean("done", done).
		AppendBinary("payload", 0, payload).
		AppendDouble("ok", 1).
		Build()
}

// helloReply offers our mechanism in place of FerretDB's, when the client asked
// about a user that exists. A speculative first step inside hello is ignored, which
// the protocol allows: the client then begins with saslStart.
func (a *authenticator) helloReply(req request, doc bsoncore.Document) bsoncore.Document {
	asked, _ := req.body.Lookup("saslSupportedMechs").StringValueOK()
	const field = "saslSupportedMechs"
	b := bsoncore.NewDocumentBuilder()
	elements, err := doc.Elements()
	if err != nil {
		return doc
	}
	for _, e := range elements {
		if e.Key() != field {
			b.AppendValue(e.Key(), e.Value())
		}
	}
	for name := range a.users {
		if asked == a.db+"."+name {
			b.AppendArray(field, bsoncore.NewArrayBuilder().AppendString(mechanism).Build())
		}
	}
	return b.Build()
}
