// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/internal/mongotest"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/tree"
)

var servers mongotest.Servers

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

func mongo1(t *testing.T, o mongod.Options) *mongod.Server {
	t.Helper()
	return servers.Start(t, o)
}

func database(t *testing.T, uri, name string) *mongo.Database {
	t.Helper()
	c, err := mongo.Connect(options.Client().ApplyURI(uri))
	must.OK(t, err)
	t.Cleanup(func() { _ = c.Disconnect(context.Background()) })
	return c.Database(name)
}

func install(t *testing.T, o tree.Options) tree.Tree {
	t.Helper()
	tr, err := tree.Write(filepath.Join(t.TempDir(), "root"), o)
	must.OK(t, err)
	return tr
}

// edit replaces text in a file, and fails if it is not there.
func edit(t *testing.T, file string, pairs ...string) {
	t.Helper()
	b, err := os.ReadFile(file)
	must.OK(t, err)
	s := string(b)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(s, pairs[i]) {
			t.Fatalf("%s has no %q", file, pairs[i])
		}
		s = strings.ReplaceAll(s, pairs[i], pairs[i+1])
	}
	must.OK(t, os.WriteFile(file, []byte(s), 0o644))
}

// join switches a tree to cluster mode the crude way.
func join(t *testing.T, tr tree.Tree, host string) {
	t.Helper()
	edit(t, tr.Conf("jee-container.xml"), "<!-- cluster start", "<!-- cluster start -->", "cluster end -->", "<!-- cluster end -->")
	edit(t, tr.Conf("red5.properties"), "clusterdb.host=localhost", "clusterdb.host="+host)
	for _, app := range tr.Apps {
		edit(t, tr.App(app), "db.type=mapdb", "db.type=mongodb", "db.host=localhost", "db.host="+host)
	}
}

// quick are options for tests: nothing takes as long as with the real server.
func quick(tr tree.Tree) fakeams.Options {
	return fakeams.Options{
		Root: tr.Dir, HostAddress: "10.0.1.23", HTTPPort: -1, Period: 50 * time.Millisecond,
		MongoTimeout: time.Minute, RequestTimeout: 2 * time.Second, StreamWait: 50 * time.Millisecond,
	}
}

func start(t *testing.T, o fakeams.Options) *fakeams.Server {
	t.Helper()
	s, err := fakeams.Start(t.Context(), o)
	must.OK(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// request sends the token that the server's own secret has signed; a server without such a secret ignores it.
func request(t *testing.T, method, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	must.OK(t, err)
	req.Header.Set("ProxyAuthorization", token())
	resp, err := http.DefaultClient.Do(req)
	must.OK(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must.OK(t, err)
	return resp.StatusCode, string(b)
}

const serverSecret = "0123456789abcdef0123456789abcdef"

// secured appends to the server's settings that it answers who has a token; the last of a key counts.
func secured(t *testing.T, tr tree.Tree) {
	t.Helper()
	b, err := os.ReadFile(tr.Conf("red5.properties"))
	must.OK(t, err)
	b = append(b, "\nserver.jwtServerControlEnabled=true\nserver.jwtServerSecretKey="+serverSecret+"\n"...)
	must.OK(t, os.WriteFile(tr.Conf("red5.properties"), b, 0o644))
}

// token is HS256 by the book.
func token() string {
	b64 := base64.RawURLEncoding.EncodeToString
	text := b64([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + b64([]byte("{}"))
	mac := hmac.New(sha256.New, []byte(serverSecret))
	mac.Write([]byte(text))
	return text + "." + b64(mac.Sum(nil))
}
