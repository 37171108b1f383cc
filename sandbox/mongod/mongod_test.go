// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/sandbox/internal/mongotest"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

var servers mongotest.Servers

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

func start(t *testing.T, o mongod.Options) *mongod.Server {
	t.Helper()
	return servers.Start(t, o)
}

// connect makes a client of the real driver with short patience.
func connect(t *testing.T, uri string, more ...*options.ClientOptions) *mongo.Client {
	t.Helper()
	o := options.Client().ApplyURI(uri).
		SetServerSelectionTimeout(2 * time.Second).
		SetConnectTimeout(2 * time.Second)
	c, err := mongo.Connect(append([]*options.ClientOptions{o}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Disconnect(ctx) // a server in trouble cannot be said good-bye to
	})
	return c
}

func TestUnacknowledgedWriteLeavesTheConnectionInStep(t *testing.T) {
	t.Parallel()
	s := start(t, mongod.Options{})
	db := connect(t, s.URI()+"?w=0&maxPoolSize=1").Database("d")
	for i := range 5 {
		if _, err := db.Collection("c").InsertOne(t.Context(), bson.M{"_id": i}); err != nil {
			t.Fatal(err)
		}
	}
	n, err := db.Collection("c").CountDocuments(t.Context(), bson.M{})
	if err != nil || n != 5 {
		t.Errorf("CountDocuments = %d, %v; want 5", n, err)
	}
}

// The driver's monitor asks for a stream of hello replies when the server's hello
// carries a topologyVersion: the proxy takes it out, so that a fault finds a command
// to strike.
func TestHelloHasNoTopologyVersion(t *testing.T) {
	t.Parallel()
	s := start(t, mongod.Options{})
	var hello bson.M
	cmd := bson.D{{Key: "hello", Value: 1}}
	if err := connect(t, s.URI()).Database("admin").RunCommand(t.Context(), cmd).Decode(&hello); err != nil {
		t.Fatal(err)
	}
	if v, ok := hello["topologyVersion"]; ok {
		t.Errorf("topologyVersion = %v: the proxy has to learn streaming hellos", v)
	}
	if _, ok := hello["localTime"]; !ok {
		t.Error("hello without localTime")
	}
}

func TestDataSurviveARestart(t *testing.T) {
	t.Parallel()
	users := map[string]string{"ams": "p@ss:/?#"}
	for name, o := range map[string]mongod.Options{
		"one server":         {},
		"with a login":       {Users: users, AuthDB: "liveapp"},
		"a set with a login": {Users: users, AuthDB: "admin", ReplicaSet: "rs9"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Dir = filepath.Join(t.TempDir(), "a blank")
			collection := func(s *mongod.Server) *mongo.Collection {
				t.Helper()
				uri := s.URI() + "?replicaSet=" + o.ReplicaSet
				if o.Users != nil {
					uri = "mongodb://" + url.UserPassword("ams", users["ams"]).String() + "@" + s.Addr() + "/" + o.AuthDB + "?replicaSet=" + o.ReplicaSet
				}
				return connect(t, strings.TrimSuffix(uri, "?replicaSet=")).Database("d").Collection("c")
			}
			s := start(t, o)
			if _, err := collection(s).InsertOne(t.Context(), bson.M{"_id": 7}); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if o.ReplicaSet == "" {
				o.Listen = s.Addr() // the same port, at once
			}
			n, err := collection(start(t, o)).CountDocuments(t.Context(), bson.M{})
			if err != nil || n != 1 {
				t.Errorf("after the restart: %d documents, %v", n, err)
			}
		})
	}
}

func TestCloseIsPrompt(t *testing.T) {
	t.Parallel()
	s := start(t, mongod.Options{})
	c := connect(t, s.URI())
	if err := c.Ping(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d >= 3*time.Second {
		t.Errorf("Close took %v", d)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	insert := func(t *testing.T, c *mongo.Client, patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err := c.Database("d").Collection("c").InsertOne(ctx, bson.M{})
		return err
	}
	tests := []struct {
		name     string
		fault    mongod.Fault
		want     func(error) bool
		wantDocs int64 // in the end, after one insert during the fault and one after it
	}{
		{"delay within patience", mongod.Fault{Mode: mongod.Delay, Delay: 100 * time.Millisecond}, isNil, 2},
		// The driver stops waiting but keeps its connection for a while: a late
		// command is executed all the same, as it would be by a slow server.
		{"delay beyond patience", mongod.Fault{Mode: mongod.Delay, Delay: time.Hour}, mongo.IsTimeout, 2},
		{"cut before the insert", mongod.Fault{Mode: mongod.Cut, Commands: []string{"insert"}}, mongo.IsNetworkError, 1},
		{"cut after it was executed", mongod.Fault{Mode: mongod.CutReply, Commands: []string{"insert"}, Times: 1}, mongo.IsNetworkError, 2},
		{"refuse", mongod.Fault{Mode: mongod.Refuse}, isTrouble, 1},
		{"black hole", mongod.Fault{Mode: mongod.BlackHole}, mongo.IsTimeout, 1},
		{"half close", mongod.Fault{Mode: mongod.HalfClose, Commands: []string{"insert"}, Times: 1}, mongo.IsNetworkError, 1},
		{"truncate", mongod.Fault{Mode: mongod.Truncate, Commands: []string{"insert"}, Times: 1}, mongo.IsNetworkError, 2},
		{"error", mongod.Fault{Mode: mongod.Error, Commands: []string{"insert"}, Times: 1}, hasCode(91), 1},
		{"error of choice", mongod.Fault{Mode: mongod.Error, Commands: []string{"insert"}, Code: 10107, Name: "NotWritablePrimary"}, hasCode(10107), 1},
	}
	// What goes on for as long as the insert waits.
	endless := []string{"delay beyond patience", "refuse", "black hole"}
	// In a set the driver repeats an insert at once whose connection broke, and the server knows whether it was executed.
	repeated := []string{"cut before the insert", "cut after it was executed", "half close", "truncate"}
	for name, o := range map[string]mongod.Options{"one server": {}, "a set": {ReplicaSet: realmongo.SetName}} {
		for _, tt := range tests {
			if o.ReplicaSet != "" && slices.Contains(repeated, tt.name) {
				tt.want, tt.wantDocs = isNil, 2
			}
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				s := start(t, o)
				c := connect(t, s.URI())
				// The collection exists, so that the insert below is quick.
				if err := c.Database("d").CreateCollection(t.Context(), "c"); err != nil {
					t.Fatal(err)
				}
				if err := s.Faults().Set(tt.fault); err != nil {
					t.Fatal(err)
				}
				patience := time.Minute // of a busy machine
				if slices.Contains(endless, tt.name) {
					patience = time.Second
				}
				if err := insert(t, c, patience); !tt.want(err) {
					t.Errorf("insert during the fault: %v", err)
				}
				s.Faults().Clear()
				fresh := connect(t, s.URI())
				if err := insert(t, fresh, time.Minute); err != nil {
					t.Errorf("insert after the fault: %v", err)
				}
				count := func() int64 {
					n, err := fresh.Database("d").Collection("c").CountDocuments(t.Context(), bson.M{})
					if err != nil {
						t.Fatal(err)
					}
					return n
				}
				// What was held back may be executed after what was sent later.
				n := count()
				for until := time.Now().Add(time.Minute); n < tt.wantDocs && time.Now().Before(until); n = count() {
					<-time.After(10 * time.Millisecond)
				}
				if n != tt.wantDocs {
					t.Errorf("%d documents; want %d", n, tt.wantDocs)
				}
			})
		}
	}
}

func isNil(err error) bool     { return err == nil }
func isTrouble(err error) bool { return mongo.IsTimeout(err) || mongo.IsNetworkError(err) }
func hasCode(code int) func(error) bool {
	return func(err error) bool {
		var se mongo.ServerError
		return errors.As(err, &se) && se.HasErrorCode(code)
	}
}

func TestRefuseIsTheKernelsRefusal(t *testing.T) {
	t.Parallel()
	s := start(t, mongod.Options{})
	if err := s.Faults().Set(mongod.Fault{Mode: mongod.Refuse}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := net.Dial("tcp", s.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("dial = %v, want ECONNREFUSED", err)
		}
	}
	s.Faults().Clear()
	if err := connect(t, s.URI()).Ping(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

func TestCutAfterSoManyCommands(t *testing.T) {
	t.Parallel()
	s := start(t, mongod.Options{})
	c := connect(t, s.URI()).Database("d").Collection("c")
	err := s.Faults().Set(mongod.Fault{
		Mode: mongod.Cut, After: 3, Commands: []string{"insert"}, Then: mongod.Refuse,
	})
	if err != nil {
		t.Fatal(err)
	}
	ok := 0
	for i := range 5 {
		patience := time.Minute
		if ok == 3 {
			patience = 300 * time.Millisecond // what follows waits for a server in vain
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if _, err := c.InsertOne(ctx, bson.M{"_id": i}); err == nil {
			ok++
		}
		cancel()
	}
	if ok != 3 {
		t.Errorf("%d inserts passed, want 3", ok)
	}
	if got := s.Faults().Current().Mode; got != mongod.Refuse {
		t.Errorf("mode after the cut = %s, want refuse", got)
	}
	if open := s.Stats().Open; open != 0 {
		t.Errorf("%d connections open while refusing", open)
	}
}

func TestFaultOfOneClientDoesNotHoldUpAnother(t *testing.T) {
	t.Parallel()
	s := start(t, mongod.Options{})
	if err := s.Faults().Set(mongod.Fault{Mode: mongod.BlackHole, Commands: []string{"update"}}); err != nil {
		t.Fatal(err)
	}
	stuck := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, err := connect(t, s.URI()).Database("d").Collection("c").
			UpdateOne(ctx, bson.M{}, bson.M{"$set": bson.M{"a": 1}})
		stuck <- err
	}()
	other := connect(t, s.URI()).Database("d").Collection("c")
	for i := range 10 {
		if _, err := other.InsertOne(t.Context(), bson.M{"_id": i}); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-stuck; err == nil {
		t.Error("the swallowed update succeeded")
	}
}

func TestBadFaultsAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t, mongod.Options{Control: "127.0.0.1:0"})
	for _, query := range []string{
		"mode=dealy", "mode=delay", "mode=delay&ms=x", "mode=cut&afetr=3", "mode=refuse&commands=insert",
		"mode=cut&then=what", "mode=error&times=-1",
	} {
		status, body := request(t, "POST", s.ControlAddr(), "/fault?"+query)
		if status != http.StatusBadRequest {
			t.Errorf("POST /fault?%s = %d %s, want 400", query, status, body)
		}
	}
	if got := s.Faults().Current().Mode; got != mongod.None {
		t.Errorf("mode = %s after refused requests", got)
	}
}

func TestControlPort(t *testing.T) {
	t.Parallel()
	s := start(t, mongod.Options{Control: "127.0.0.1:0"})
	status, _ := request(t, "POST", s.ControlAddr(), "/fault?mode=delay&ms=500&commands=insert,update&after=2&times=1&then=refuse")
	if status != http.StatusOK {
		t.Fatalf("POST /fault = %d", status)
	}
	want := mongod.Fault{
		Mode: mongod.Delay, Delay: 500 * time.Millisecond, Commands: []string{"insert", "update"},
		After: 2, Times: 1, Then: mongod.Refuse,
	}
	if diff := cmp.Diff(want, s.Faults().Current()); diff != "" {
		t.Errorf("fault (-want +got):\n%s", diff)
	}
	if status, _ = request(t, "DELETE", s.ControlAddr(), "/fault"); status != http.StatusOK {
		t.Errorf("DELETE /fault = %d", status)
	}
	if got := s.Faults().Current().Mode; got != mongod.None {
		t.Errorf("mode after DELETE = %s", got)
	}
	_, err := connect(t, s.URI()).Database("reg").Collection("nodes").InsertOne(t.Context(), bson.M{})
	if err != nil {
		t.Fatal(err)
	}
	_, body := request(t, "GET", s.ControlAddr(), "/commands?name=insert")
	for _, part := range []string{`"name": "insert"`, `"db": "reg"`, `"collection": "nodes"`, `"ok": true`} {
		if !strings.Contains(body, part) {
			t.Errorf("record of commands lacks %s:\n%s", part, body)
		}
	}
	if _, body = request(t, "GET", s.ControlAddr(), "/stats"); !strings.Contains(body, `"insert": 1`) {
		t.Errorf("stats:\n%s", body)
	}
}

func request(t *testing.T, method, addr, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestGarbageDoesNotHurt(t *testing.T) {
	t.Parallel()
	s := start(t, mongod.Options{})
	for _, garbage := range []string{
		"GET / HTTP/1.1\r\n\r\n",
		"\x00\x00\x00\x00",
		"\xff\xff\xff\xff\xff\xff\xff\xff",
		"\x15\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xdd\x07\x00\x00\x00\x00\x00\x00\x07",
		"\x12\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xd4\x07\x00\x00\x00\x00",
	} {
		conn, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprint(conn, garbage)
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadAll(conn); errors.Is(err, context.DeadlineExceeded) || isDeadline(err) {
			t.Errorf("the connection with %q stays open", garbage)
		}
		_ = conn.Close()
	}
	if err := connect(t, s.URI()).Ping(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

func isDeadline(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
