// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realmongo

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/sandbox/internal/port"
)

// Options says what to start.
type Options struct {
	// Binary is the program; see Require.
	Binary string
	// Members makes a replica set of so many. 0 is one server without a set.
	Members int
	// Name is the set's; default SetName.
	Name string
	// Users (name to password) switches authorization on. Each may do everything.
	Users map[string]string
	// Dir holds data and logs; empty is a temporary folder that Close removes.
	Dir string
	// Host and Port are where the first member listens; the others take the next
	// ports. The default is free ports of 127.0.0.1.
	Host string
	Port int
	// Socket makes one server listen on this Unix socket and on no port. Advertise
	// is then the address by which a set of one knows its member.
	Socket    string
	Advertise string
	// ElectionTimeout is how long a set does without its primary before it elects
	// another; default 2 s (mongod's own is 10 s).
	ElectionTimeout time.Duration
	// Prefix is put before each command line: a command that enters a namespace.
	Prefix []string
	// Dial reaches the members from here, where Prefix hides them.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Args are added to each command line.
	Args []string
}

// appName is how the clients of this package call themselves.
const appName = "realmongo"

// SetName is the name of a replica set unless Options.Name is another.
const SetName = "rs0"

// Set is a running server or replica set.
type Set struct {
	o       Options
	members []*Member
	tmp     string
	authed  bool // the users are there
}

// Start starts the members and waits until a client can write. They run until
// Close, or until this process ends.
func Start(ctx context.Context, o Options) (_ *Set, err error) {
	s := &Set{o: o}
	if o.ElectionTimeout == 0 {
		s.o.ElectionTimeout = 2 * time.Second
	}
	s.o.Host, s.o.Name = cmp.Or(o.Host, "127.0.0.1"), cmp.Or(o.Name, SetName)
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if o.Dir == "" {
		if s.tmp, err = os.MkdirTemp("", "realmongo-"); err != nil {
			return nil, fmt.Errorf("making a folder for mongod: %w", err)
		}
		s.o.Dir = s.tmp
	}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	for _, m := range s.members {
		if err := m.Start(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.initiate(ctx); err != nil {
		return nil, err
	}
	if err := s.createUsers(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// prepare makes folders, ports and the key by which members of a set trust each
// other.
func (s *Set) prepare() error {
	for i := range max(1, s.o.Members) {
		m := &Member{set: s, dir: filepath.Join(s.o.Dir, strconv.Itoa(i)), port: s.o.Port + i}
		if err := os.MkdirAll(m.dir, 0o700); err != nil {
			return fmt.Errorf("making a folder for mongod: %w", err)
		}
		if s.o.Port == 0 && s.o.Socket == "" {
			var err error
			if m.port, err = port.Free(); err != nil {
				return err
			}
		}
		s.members = append(s.members, m)
	}
	if s.o.Users == nil || s.o.Members == 0 {
		return nil
	}
	if err := os.WriteFile(s.keyFile(), []byte(rand.Text()+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing the key of the set: %w", err)
	}
	return nil
}

func (s *Set) keyFile() string { return filepath.Join(s.o.Dir, "key") }

// initiate makes the set, and waits for a primary.
func (s *Set) initiate(ctx context.Context) error {
	if s.o.Members == 0 {
		return nil
	}
	c, err := s.members[0].Client()
	if err != nil {
		return err
	}
	defer disconnect(c)
	admin := c.Database("admin")
	members := bson.A{}
	for i, m := range s.members {
		// The first becomes the primary, so that a test knows which one it is.
		members = append(members, bson.M{"_id": i, "host": m.Addr(), "priority": len(s.members) - i})
	}
	config := bson.M{"_id": s.o.Name, "version": 1, "members": members, "settings": bson.M{
		"electionTimeoutMillis": s.o.ElectionTimeout.Milliseconds(), "heartbeatIntervalMillis": 500,
		// Else a member that hangs, and closes no connection, is noticed after 10 s.
		"heartbeatTimeoutSecs": max(1, int(s.o.ElectionTimeout.Seconds())),
	}}
	switch err = admin.RunCommand(ctx, bson.D{{Key: "replSetInitiate", Value: config}}).Err(); {
	case hasCode(err, codeUnauthorized) && !s.authed:
		s.authed = true // the data of an earlier run have the users
		return s.initiate(ctx)
	case hasCode(err, codeAlreadyInitialized):
		// They have the addresses of that run, too, which may have been others.
		config["version"] = time.Now().Unix()
		err = admin.RunCommand(ctx, bson.D{{Key: "replSetReconfig", Value: config}, {Key: "force", Value: true}}).Err()
	}
	if err != nil {
		return fmt.Errorf("initiating the replica set: %w", err)
	}
	_, err = s.waitPrimary(ctx)
	return err
}

// The codes of mongod's errors that are handled here.
const (
	codeUnauthorized       = 13
	codeAlreadyInitialized = 23
	codeUserExists         = 51003
)

func hasCode(err error, code int32) bool {
	e, ok := errors.AsType[mongo.CommandError](err)
	return ok && e.Code == code
}

// waitPrimary waits, startLimit at most, for the member that may be written to: a set may
// be electing, and on a busy machine a member takes its time to say so.
func (s *Set) waitPrimary(ctx context.Context) (*Member, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		m, err := s.Primary(ctx)
		if err == nil {
			return m, nil
		}
		if !slices.ContainsFunc(s.members, (*Member).Running) {
			return nil, errors.New(s.members[0].Story())
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return nil, fmt.Errorf("waiting for a primary: %w", err)
		}
	}
}

// createUsers makes the users of the options.
func (s *Set) createUsers(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(s.o.Users)) {
		err := s.AddUser(ctx, "admin", name, s.o.Users[name])
		if hasCode(err, codeUnauthorized) && !s.authed {
			s.authed = true // the data of an earlier run have the users
			err = s.AddUser(ctx, "admin", name, s.o.Users[name])
		}
		if err != nil {
			return err
		}
		s.authed = true
	}
	return nil
}

// AddUser makes a user of a database that may do everything, or gives one that is there
// this password. mongod lets a client of its own machine make the first one without a login.
func (s *Set) AddUser(ctx context.Context, database, name, password string) error {
	m, err := s.waitPrimary(ctx)
	if err != nil {
		return err
	}
	c, err := m.Client()
	if err != nil {
		return err
	}
	defer disconnect(c)
	role := bson.A{bson.M{"role": "root", "db": "admin"}}
	for _, verb := range []string{"createUser", "updateUser"} {
		err = c.Database(database).RunCommand(ctx, bson.D{{Key: verb, Value: name}, {Key: "pwd", Value: password}, {Key: "roles", Value: role}}).Err()
		if !hasCode(err, codeUserExists) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("making the user %s: %w", name, err)
	}
	return nil
}

// credential is that of the first user by name.
func (s *Set) credential() (name, password string, ok bool) {
	if !s.authed {
		return "", "", false
	}
	name = slices.Min(slices.Collect(maps.Keys(s.o.Users)))
	return name, s.o.Users[name], true
}

// Members returns all members; their order is that of the ports.
func (s *Set) Members() []*Member { return s.members }

// Member returns one of them.
func (s *Set) Member(i int) *Member { return s.members[i] }

// Addrs is host:port of every member, joined by commas.
func (s *Set) Addrs() string {
	addrs := make([]string, 0, len(s.members))
	for _, m := range s.members {
		addrs = append(addrs, m.Addr())
	}
	return strings.Join(addrs, ",")
}

// URI names all members, the set, and the first user.
func (s *Set) URI() string {
	q := url.Values{}
	if s.o.Members > 0 {
		q.Set("replicaSet", s.o.Name)
	}
	user := ""
	if name, password, ok := s.credential(); ok {
		user = url.UserPassword(name, password).String() + "@"
		q.Set("authSource", "admin")
	}
	uri := "mongodb://" + user + s.Addrs() + "/"
	if len(q) > 0 {
		uri += "?" + q.Encode()
	}
	return uri
}

// Client returns a client of the whole set, as the first user. The caller
// disconnects it.
func (s *Set) Client() (*mongo.Client, error) { return s.open(options.Client().ApplyURI(s.URI())) }

func (s *Set) open(o *options.ClientOptions) (*mongo.Client, error) {
	if s.o.Dial != nil {
		o.SetDialer(dialer(s.o.Dial))
	}
	c, err := mongo.Connect(o)
	if err != nil {
		return nil, fmt.Errorf("connecting to mongod: %w", err)
	}
	return c, nil
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return d(ctx, network, address)
}

// Primary returns the member that may be written to.
func (s *Set) Primary(ctx context.Context) (*Member, error) {
	var last error
	for _, m := range s.members {
		primary, err := m.IsPrimary(ctx)
		if primary {
			return m, nil
		}
		last = errors.Join(last, err)
	}
	return nil, fmt.Errorf("no member is the primary: %w", last)
}

// StepDown makes the primary resign for a minute, as an operator does it.
func (s *Set) StepDown(ctx context.Context) error {
	m, err := s.waitPrimary(ctx)
	if err != nil {
		return err
	}
	c, err := m.Client()
	if err != nil {
		return err
	}
	defer disconnect(c)
	if err := c.Database("admin").RunCommand(ctx, bson.D{{Key: "replSetStepDown", Value: 60}, {Key: "force", Value: true}}).Err(); err != nil {
		return fmt.Errorf("stepping %s down: %w", m.Addr(), err)
	}
	return nil
}

// Empty drops every database of an idle server, and every user but those of its
// options, for the next test. It waits until the clients of the last one have gone:
// what they asked for may still be under way.
func (s *Set) Empty(ctx context.Context) error {
	m, err := s.waitPrimary(ctx)
	if err != nil {
		return err
	}
	c, err := m.Client()
	if err != nil {
		return err
	}
	defer disconnect(c)
	if err := waitAlone(ctx, c); err != nil {
		return err
	}
	if err := s.dropUsers(ctx, c.Database("admin")); err != nil {
		return err
	}
	names, err := c.ListDatabaseNames(ctx, bson.D{{Key: "name", Value: bson.M{"$nin": bson.A{"admin", "config", "local"}}}})
	if err != nil {
		return fmt.Errorf("listing the databases: %w", err)
	}
	for _, name := range names {
		if err := c.Database(name).RunCommand(ctx, bson.D{{Key: "profile", Value: 0}}).Err(); err != nil {
			return fmt.Errorf("ending the profile of %s: %w", name, err)
		}
		if err := c.Database(name).Drop(ctx); err != nil {
			return fmt.Errorf("dropping the database %s: %w", name, err)
		}
	}
	return nil
}

// dropUsers drops every user but those of the options.
func (s *Set) dropUsers(ctx context.Context, admin *mongo.Database) error {
	if s.o.Users == nil {
		return nil
	}
	var list struct {
		Users []struct {
			User string `bson:"user"`
			DB   string `bson:"db"`
		} `bson:"users"`
	}
	if err := admin.RunCommand(ctx, bson.D{{Key: "usersInfo", Value: bson.M{"forAllDBs": true}}}).Decode(&list); err != nil {
		return fmt.Errorf("listing the users: %w", err)
	}
	for _, u := range list.Users {
		if _, keep := s.o.Users[u.User]; keep && u.DB == "admin" {
			continue
		}
		if err := admin.Client().Database(u.DB).RunCommand(ctx, bson.D{{Key: "dropUser", Value: u.User}}).Err(); err != nil {
			return fmt.Errorf("dropping the user %s: %w", u.User, err)
		}
	}
	return nil
}

// waitAlone waits until the server works for no client but those of this package.
func waitAlone(ctx context.Context, c *mongo.Client) error {
	for {
		cur, err := c.Database("admin").Aggregate(ctx, mongo.Pipeline{
			{{Key: "$currentOp", Value: bson.M{"allUsers": true, "idleConnections": false}}},
			{{Key: "$match", Value: bson.M{"active": true, "connectionId": bson.M{"$exists": true}, "appName": bson.M{"$ne": appName}}}},
		})
		var busy []bson.Raw
		if err == nil {
			err = cur.All(ctx, &busy)
		}
		if mongo.IsTimeout(err) && ctx.Err() == nil {
			continue // a busy machine
		}
		if err != nil {
			return fmt.Errorf("looking for what is under way: %w", err)
		}
		if len(busy) == 0 {
			return nil
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for the end of what is under way: %w", err)
		}
	}
}

// Stop ends all members in order, so that all that was written is kept, and then closes
// the set.
func (s *Set) Stop() error {
	var err error
	for _, m := range s.members {
		err = errors.Join(err, m.Stop())
	}
	return errors.Join(err, s.Close())
}

// Close kills all members and removes what Start made.
func (s *Set) Close() error {
	var err error
	for _, m := range s.members {
		err = errors.Join(err, m.Kill())
	}
	if s.tmp != "" {
		err = errors.Join(err, os.RemoveAll(s.tmp))
	}
	return err
}

func disconnect(c *mongo.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = c.Disconnect(ctx)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
