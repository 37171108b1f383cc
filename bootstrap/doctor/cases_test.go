// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func noServer(c *clinic) { c.remove("usr/local/antmedia") }

// runs is a server that was asked for its release.
func runs(r bootstrap.RunningRelease) func(c *clinic) {
	return func(c *clinic) {
		c.status = finished(&bootstrap.Status{Process: bootstrap.ProcessView{Release: &r}}, nil)
	}
}

func release(version string) func(c *clinic) {
	return func(c *clinic) { c.o.Machine.Release, _ = ams.ParseRelease(version) }
}

// token lets the server report its viewers.
const token = "server.jwtServerControlEnabled=true\nserver.jwtServerSecretKey=a-secret-of-the-server-in-32-bytes\n"

// counted is a running machine whose server has these settings.
func counted(st ams.State, settings string) func(c *clinic) {
	return func(c *clinic) {
		c.running, c.service.state = true, st
		c.put(server, "clusterdb.host=\n"+settings)
	}
}

func serverCases() []aCase {
	return []aCase{
		{bootstrap.IDInstall, "there", nil, Good, "", "/usr/local/antmedia, standalone"},
		{bootstrap.IDInstall, "missing", noServer, Bad, "", "not an Ant Media Server tree"},
		{bootstrap.IDInstall, "half", func(c *clinic) { c.remove("usr/local/antmedia/webapps") }, Bad, "", "missing webapps"},
		{bootstrap.IDInstall, "cannot be looked at", func(c *clinic) { c.put("var/lib/amsagent/undo.json/x", "") }, Unknown, "", "undo.json"},

		{bootstrap.IDRelease, "current", nil, Good, "", "3.0.3"},
		{bootstrap.IDRelease, "takes the host name", release("2.4.3"), Good, "", "from the host name"},
		{bootstrap.IDRelease, "unknown", func(c *clinic) { c.o.Machine.Release = ams.Release{} }, Warning, "", "not known"},
		{bootstrap.IDRelease, "the running server's", runs(bootstrap.RunningRelease{Match: bootstrap.ReleaseSame, Running: "3.0.3"}), Good, "", "3.0.3; the server is up, and it runs release 3.0.3"},
		{bootstrap.IDRelease, "the running server's is not known", runs(bootstrap.RunningRelease{Match: bootstrap.ReleaseUnknown, Why: "403"}), Good, "", "its release is not known: 403"},
		{bootstrap.IDRelease, "ancient", release("1.6.0"), Warning, "", "older than all"},
		{bootstrap.IDRelease, "none", noServer, Unknown, "", ""},

		{bootstrap.IDSections, "standalone", nil, Good, "", "now standalone"},
		{bootstrap.IDSections, "cluster", func(c *clinic) { c.join("10.0.2.4") }, Good, "", "now cluster"},
		{bootstrap.IDSections, "a comment that keeps a leave from switching", func(c *clinic) {
			c.edit(container, "<!-- cluster start", "<!-- cluster start -->\n\t<!-- ours -->")
			c.edit(container, "cluster end -->", "<!-- cluster end -->")
		}, Warning, "", "a comment inside a cluster section"},
		{bootstrap.IDSections, "mixed", func(c *clinic) {
			c.join("10.0.2.4")
			c.replace(container, "<!-- cluster start -->", "<!-- cluster start", 1)
			c.replace(container, "<!-- cluster end -->", "cluster end -->", 1)
		}, Bad, "", "line"},
		{bootstrap.IDSections, "unmarked", func(c *clinic) {
			c.edit(container, "<!-- cluster start", "<!--")
			c.edit(container, "cluster end -->", "-->")
		}, Bad, "", "no marked cluster section"},
		{bootstrap.IDSections, "none", noServer, Unknown, "", ""},

		{bootstrap.IDFile, "all parse", nil, Good, "", "can be read and edited"},
		{bootstrap.IDFile, "malformed escape", func(c *clinic) { c.put(liveApp, "db.host=\\u12\n") }, Bad, "", "line 1"},
		{bootstrap.IDFile, "empty", func(c *clinic) { c.put(server, "") }, Bad, "", "empty"},
		{bootstrap.IDFile, "zeros", func(c *clinic) { c.put(server, strings.Repeat("\x00", 4096)) }, Bad, "", "there are zeros in /usr/local/antmedia/conf/red5.properties"},
		{bootstrap.IDFile, "a port with a default", func(c *clinic) { c.put(server, "http.port=${PORT:5080}\nclusterdb.host=\n") }, Warning, ams.WarnHTTPPort, "is not a plain port, and the server's environment is not known here; 5080 is assumed"},
		{bootstrap.IDFile, "an invalid port", func(c *clinic) { c.put(server, "http.port=many\nclusterdb.host=\n") }, Warning, ams.WarnHTTPPort, "is not a plain port"},
		{bootstrap.IDFile, "a second name", func(c *clinic) {
			must.OK(c.t, os.Link(c.at(server), c.at("usr/local/antmedia/conf/copy")))
			c.target("10.0.2.4")
		}, Warning, bootstrap.IDHardLink, "2 names"},
		{bootstrap.IDFile, "far too large", func(c *clinic) { c.put(liveApp, "db.type=mapdb\n"+strings.Repeat("#\n", 300_000)) }, Bad, bootstrap.IDFileSize, "too large"},
		{bootstrap.IDFile, "a link out of the server's tree", func(c *clinic) {
			c.put("etc/other.properties", "a=b\n")
			c.remove(liveApp)
			c.link(liveApp, "/etc/other.properties")
			c.chown("usr/local/antmedia/webapps/LiveApp/WEB-INF", 4242)
			c.chown(liveApp, 4242)
		}, Bad, bootstrap.IDFileLink, "link refused"},
		{bootstrap.IDFile, "none", noServer, Unknown, "", ""},

		{idApps, "some", nil, Good, "", `"LiveApp"`},
		{idApps, "incomplete", func(c *clinic) { c.put("usr/local/antmedia/webapps/Half/index.html", "") }, Warning, ams.WarnAppIncomplete, "Half"},
		{idApps, "a link to nowhere", func(c *clinic) { c.link("usr/local/antmedia/webapps/Gone", "/nowhere") }, Warning, ams.WarnAppIncomplete, "Gone"},
		{idApps, "a name that is not UTF-8", func(c *clinic) {
			c.put("usr/local/antmedia/webapps/caf\xe9/WEB-INF/red5-web.properties", "db.type=mapdb\n")
		}, Warning, ams.WarnAppEncoding, `caf\xe9`},
		{idApps, "no folder at all", func(c *clinic) {
			c.remove("usr/local/antmedia/webapps")
			c.put("usr/local/antmedia/webapps/README", "")
		}, Warning, "", "not even the web panel"},
		{idApps, "none", noServer, Unknown, "", ""},

		{bootstrap.IDFileOwner, "all alike", nil, Good, "", "all belong to uid"},
		{bootstrap.IDFileOwner, "edited as another user", func(c *clinic) { c.chown(liveApp, 4242) }, Warning, "", "settings cannot be saved"},
		{bootstrap.IDFileOwner, "closed to the server", func(c *clinic) {
			c.chown(container, 4242)
			c.chown("usr/local/antmedia", 4343)
			c.mode(container, 0o600)
		}, Bad, "", "cannot read"},
		{bootstrap.IDFileOwner, "a password will go in", func(c *clinic) {
			c.chown(liveApp, 4242)
			c.target("mongodb://u:p@10.0.2.4")
		}, Warning, "", "will hold a password"},
		{bootstrap.IDFileOwner, "none", noServer, Unknown, "", ""},

		{bootstrap.IDCount, "stopped", counted(ams.State{Activity: ams.ActivityInactive}, ""), Good, "", "does not run"},
		{bootstrap.IDCount, "statistics", counted(ams.State{Activity: ams.ActivityActive}, token), Good, "", "statistics"},
		{bootstrap.IDCount, "no process", counted(ams.State{Activity: ams.ActivityActive}, ""), Warning, "", "process is not known"},
		{bootstrap.IDCount, "no service manager", counted(ams.State{}, ""), Warning, "", "process is not known"},
		{bootstrap.IDCount, "another server's port", counted(ams.State{Activity: ams.ActivityActive, MainPID: os.Getpid()}, "http.port=1\n"), Warning, "", "port 1"},
		{bootstrap.IDCount, "a tree", nil, Unknown, "", "does not run"},

		{idSettings, "standalone", nil, Good, "", "standalone"},
		{idSettings, "a node", func(c *clinic) { c.join("10.0.2.4") }, Good, "", "the same database"},
		{idSettings, "half switched", func(c *clinic) {
			c.join("10.0.2.4")
			c.edit(server, "clusterdb.host=10.0.2.4", "clusterdb.host=localhost")
		}, Bad, "", "half switched"},
		{idSettings, "an application left behind", func(c *clinic) {
			c.join("10.0.2.4")
			c.edit(liveApp, "db.type=mongodb", "db.type=mapdb")
		}, Bad, "", `"LiveApp" do not use MongoDB`},
		{idSettings, "another database", func(c *clinic) {
			c.join("10.0.2.4")
			c.edit(liveApp, "db.host=10.0.2.4", "db.host=10.0.9.9")
		}, Warning, "", "another database"},
		{idSettings, "trailing whitespace", func(c *clinic) { c.put(liveApp, "db.type=mongodb\ndb.host=10.0.2.4  \ndb.name=live\n") }, Warning, "", `db.host in "LiveApp"`},
		{idSettings, "Redis", func(c *clinic) {
			c.put(liveApp, "db.type=redisdb\ndb.host=mongo.internal:27017\ndb.name=live\n")
		}, Warning, "", `redisdb in "LiveApp"`},
		{idSettings, "Redis on a node", func(c *clinic) {
			c.join("10.0.2.4")
			c.edit(liveApp, "db.type=mongodb", "db.type=redisdb")
		}, Bad, "", `"LiveApp" do not use MongoDB`},
		{idSettings, "broken", func(c *clinic) { c.put(container, "<beans>") }, Unknown, "", "mode of the files is not known"},

		{idAppName, "none lost", func(c *clinic) { c.put(liveApp, "db.type=mapdb\ndb.name=live\nappName=LiveApp\n") }, Good, "", "none is lost"},
		{idAppName, "lost", func(c *clinic) { c.put(liveApp, "db.type=mapdb\ndb.name=live\nappName=\n") }, Warning, "", `appName is empty in "LiveApp"`},
		{idAppName, "far too large to be read", func(c *clinic) { c.put(liveApp, "appName=\n"+strings.Repeat("#\n", 500_000)) }, Good, "", "none is lost"},
		{idAppName, "no server", noServer, Unknown, "", ""},
	}
}

func TestServer(t *testing.T) { runCases(t, serverCases()) }

// slowService never answers.
type slowService struct{ fakeService }

func (s *slowService) State(ctx context.Context) (ams.State, error) {
	<-ctx.Done()
	return ams.State{}, ctx.Err()
}

func (c *clinic) chown(path string, uid int) {
	c.t.Helper()
	if os.Geteuid() != 0 {
		c.t.Skip("only root gives files away")
	}
	must.OK(c.t, os.Lchown(c.at(path), uid, uid))
}

// identified is a machine of which the cloud says this.
func identified(i metadata.Instance, err error) func(c *clinic) {
	return func(c *clinic) {
		c.o.Join.Identify = func(context.Context) (metadata.Instance, error) { return i, err }
	}
}

// fail is a MongoDB that could not be reached, or refused us.
func fail(kind cluster.Kind, id string) func(c *clinic) {
	return func(c *clinic) {
		c.target("mongodb://u:p@10.0.2.4")
		err := &cluster.Error{Kind: kind, Op: "asking MongoDB", Host: "10.0.2.4:27017", Err: errors.New("no")}
		c.mongo = finished(reached{failed: []bootstrap.Finding{{ID: id, Severity: Bad, Text: err.Error(), Err: err}}}, nil)
	}
}

func skewed(id string) func(c *clinic) {
	return func(c *clinic) {
		c.target("10.0.2.4")
		c.mongo = finished(reached{findings: []bootstrap.Finding{{ID: id, Severity: Warning, Text: "this machine's clock is off", Hint: "chrony"}}}, nil)
	}
}

// mongoCases are those without a server; with one see sandbox/clustertest.
func mongoCases() []aCase {
	unreachable := fail(cluster.KindRefused, bootstrap.IDMongo)
	at := func(s string) func(c *clinic) { return func(c *clinic) { c.target(s) } }
	cases := []aCase{
		{idMongoNoName, "named", func(c *clinic) { c.target("mongodb://u:secret@10.0.2.4"); c.o.MongoFrom = "--mongo" }, Good, "", "from --mongo"},
		{idMongoNoName, "wrong", func(c *clinic) { c.o.MongoErr = errors.New("two ports") }, Bad, "", "two ports"},

		{bootstrap.IDMongoForm, "fine", at("10.0.2.4"), Good, "", "can use it"},
		{bootstrap.IDMongoForm, "too new for the release", func(c *clinic) { release("2.3.0")(c); c.target("mongodb+srv://c.example.net") }, Bad, "", "mongodb+srv"},
		{bootstrap.IDMongoLocal, "fine", at("10.0.2.4"), Good, "", "not only"},
		{bootstrap.IDMongoLocal, "this machine", at("127.0.0.1"), Warning, "", "no other node can join"},
		{bootstrap.IDMongoLocal, "a cluster of one", func(c *clinic) { c.target("127.0.0.1"); c.o.Join.Address, c.o.Join.ForceAddress = "127.0.0.1", true }, Good, "", "cluster of one"},

		{bootstrap.IDMongo, "refused", unreachable, Bad, "", "no"},
		{bootstrap.IDMongoAuth, "refused", fail(cluster.KindAuth, bootstrap.IDMongoAuth), Bad, "", "refused the user name"},
		{bootstrap.IDMongoAuth, "not reached", unreachable, Unknown, "", "could not be asked"},
		{idNotPrimary, "no primary", fail(cluster.KindNotPrimary, bootstrap.IDMongo), Bad, "", "takes no writes"},
		{bootstrap.IDMongo, "no primary is another check's", fail(cluster.KindNotPrimary, bootstrap.IDMongo), Good, "", "answers"},

		{idMongoOpen, "not reached", unreachable, Unknown, "", "could not be asked"},
		{idMongoOpen, "lost in between", func(c *clinic) {
			c.target("127.0.0.1:1")
			c.mongo, c.o.Connect.Timeout = finished(reached{}, nil), time.Second
		}, Unknown, "", "without a password"},
		{idMongoPlain, "private", at("10.0.2.4"), Good, "", "private network"},
		{idMongoPlain, "loopback", at("127.0.0.1"), Good, "", "private network"},
		{idMongoPlain, "public", at("mongodb://8.8.8.8"), Warning, "", "nothing is encrypted"},
		{idMongoPlain, "public, with TLS", at("mongodb://8.8.8.8/?tls=true"), Good, "", "TLS"},
		{idMongoPlain, "a name that does not resolve", at("mongodb://nowhere.invalid"), Unknown, "", "not known"},

		{bootstrap.IDClock, "off", skewed(bootstrap.IDClock), Warning, "", "off"},
		{bootstrap.IDClock, "not compared", skewed(bootstrap.IDUnverified), Unknown, bootstrap.IDUnverified, "off"},

		{idRows, "no other node", rows(node("i-1", "10.0.0.5", 0)), Good, "", "no other node has 10.0.0.5"},
		{idRows, "an earlier machine", rows(node("i-1", "10.0.0.5", 0), node("i-0", "10.0.0.5", time.Hour)), Warning, "", "its agent is silent"},
		{idRows, "two machines", rows(node("i-1", "10.0.0.5", 0), node("i-0", "10.0.0.5", 0)), Bad, "", "its agent sends heartbeats"},
		{idRows, "one that has left", rows(node("i-1", "10.0.0.5", 0), left(node("i-0", "10.0.0.5", 0))), Good, "", "no other node"},
		{idRows, "two servers", func(c *clinic) {
			rows(node("i-1", "10.0.0.5", 0))(c)
			c.look.value.AMS = []cluster.AMSNode{{ID: "a", IP: "10.0.0.5", LastUpdate: time.Now()}, {ID: "b", IP: "10.0.0.5", LastUpdate: time.Now()}}
		}, Warning, "", "2 documents"},
		{idRows, "no address", func(c *clinic) {
			rows(node("i-1", "10.0.0.5", 0))(c)
			identified(metadata.Instance{}, errors.New("no"))(c)
		}, Unknown, "", "address is not known"},
		{bootstrap.IDRole, "others have it", roles("edge", "edge", "origin"), Good, "", "edge"},
		{bootstrap.IDRole, "no other has it", roles("egde", "edge", "origin"), Warning, "", "role egde: no other node has it (edge, origin)"},
		{idUnequal, "equal", settings("a", "a", "a"), Good, "", "no active node"},
		{idUnequal, "this node differs", settings("b", "a", "a"), Warning, "", "10.0.0.5 differs from most nodes of role edge"},
		{idUnequal, "another node differs", settings("a", "a", "b"), Good, "", "10.0.0.11 differs from most nodes of role edge"},
		{idUnequal, "no majority", settings("a", "b"), Warning, "", "10.0.0.5, 10.0.0.10 differ from other nodes"},
		{idUnequal, "not known here", settings("", "a", "a"), Unknown, "", "does not report its own"},
		{idUnequal, "not known of another node", settings("a", "a", ""), Good, "", "no active node"},
		{idUnequal, "no node", rows(node("i-0", "10.0.0.9", 0)), Good, "", "not a node"},
		{idUnequal, "no identity", func(c *clinic) {
			settings("a", "b")(c)
			identified(metadata.Instance{}, errors.New("no"))(c)
		}, Unknown, "", "not known"},
	}
	for _, c := range checks() {
		if c.group == GroupMongo {
			cases = append(cases, aCase{c.id, "no MongoDB", nil, Unknown, "", "no MongoDB address is known"})
		}
	}
	return cases
}

func TestMongo(t *testing.T) { runCases(t, mongoCases()) }

func node(id, ip string, age time.Duration) cluster.Node {
	return cluster.Node{ID: id, IP: ip, State: cluster.StateActive, Heartbeat: cluster.Heartbeat{Seq: 5}, Interval: seconds.Duration(5 * time.Second), UpdatedAt: time.Now().Add(-age)}
}

// settings are nodes of one role, the first of them this machine, with the digests of their servers' settings.
func settings(digests ...string) func(c *clinic) {
	return func(c *clinic) {
		var nodes []cluster.Node
		for i, digest := range digests {
			n := node(fmt.Sprint("i-", i+1), fmt.Sprint("10.0.0.", 9+i), 0)
			if i == 0 {
				n.IP = "10.0.0.5"
			}
			n.Role, n.Digest = "edge", digest
			nodes = append(nodes, n)
		}
		rows(nodes...)(c)
	}
}

// roles is a machine that would join with the first, beside nodes with the others.
func roles(own string, others ...string) func(c *clinic) {
	return func(c *clinic) {
		var nodes []cluster.Node
		for _, role := range others {
			n := node("of "+role, "10.0.0.9", 0)
			n.Role = role
			nodes = append(nodes, n)
		}
		rows(nodes...)(c)
		c.o.Join.Role = own
	}
}

func left(n cluster.Node) cluster.Node {
	n.State = cluster.StateLeft
	return n
}

func rows(nodes ...cluster.Node) func(c *clinic) {
	return func(c *clinic) {
		c.target("10.0.2.4")
		now := time.Now()
		c.look = finished(cluster.Look{Nodes: nodes, ServerTime: now, At: now}, nil)
	}
}

// peersAt adds other nodes with recently seen servers.
func peersAt(peers ...peer) func(c *clinic) {
	return func(c *clinic) {
		rows(node("i-1", "10.0.0.5", 0))(c)
		c.running = true
		for i, p := range peers {
			n := node(fmt.Sprintf("p-%d", i), p.address, 0)
			n.Port = 22 // its writer's choice: not asked
			c.put(server, fmt.Sprintf("http.port=%d\nclusterdb.host=\n", p.port))
			c.look.value.Nodes = append(c.look.value.Nodes, n)
			c.look.value.AMS = append(c.look.value.AMS, cluster.AMSNode{ID: fmt.Sprintf("a-%d", i), IP: p.address, LastUpdate: time.Now()})
		}
	}
}

// TestPeersDialed: any client of MongoDB can write node addresses. The doctor dials only IP addresses, without a resolver, and
// only the ports of this machine's own server.
func TestPeersDialed(t *testing.T) {
	c := newClinic(t)
	var mu sync.Mutex
	var dialed []string
	c.dial = func(_ context.Context, at string) error {
		mu.Lock()
		defer mu.Unlock()
		dialed = append(dialed, at)
		return nil
	}
	peersAt(peer{address: "10.0.0.6", port: 5081}, peer{address: "db.example.org", port: 5081}, peer{address: "fe80::1%lo", port: 5081},
		peer{address: "0.0.0.0", port: 5081}, peer{address: "224.0.0.1", port: 5081}, peer{address: "10.0.0.7:22", port: 5081})(c)
	results := c.check(idPeers)
	slices.Sort(dialed)
	if want := []string{"10.0.0.6:5000", "10.0.0.6:5081"}; !slices.Equal(dialed, want) {
		t.Errorf("dialed %q, want %q; %+v", dialed, want, results)
	}
}

func networkCases(open, closed int) []aCase {
	return []aCase{
		{bootstrap.IDIdentity, "known", nil, Good, "", "i-1 on aws"},
		{bootstrap.IDIdentity, "no answer", identified(metadata.Instance{}, errors.New("no answer")), Bad, "", "no answer"},
		{bootstrap.IDIdentity, "not asked", func(c *clinic) { c.o.Join.Offline = true }, Unknown, "", "not asked"},

		{bootstrap.IDAddress, "from the cloud", nil, Unknown, ams.WarnAddressUnchecked, "10.0.0.5"},
		{bootstrap.IDAddress, "public", identified(metadata.Instance{ID: "i-1", Address: netip.MustParseAddr("8.8.8.8")}, nil), Warning, ams.WarnAddressPublic, "8.8.8.8"},
		{bootstrap.IDAddress, "no address", func(c *clinic) { c.o.Join.Address = "10.0.0.0/8" }, Bad, "", "not an IP address"},
		{bootstrap.IDAddress, "a tree's interfaces", identified(metadata.Instance{ID: "i-1"}, nil), Unknown, "", "interfaces of that machine are not known"},
		{bootstrap.IDAddress, "no identity", identified(metadata.Instance{}, errors.New("no answer")), Unknown, "", "without an identity"},

		{bootstrap.IDHostname, "resolves", nil, Good, "", "node-1 resolves to 10.0.0.5"},
		{bootstrap.IDHostname, "will resolve", func(c *clinic) { c.put("etc/hosts", "127.0.0.1 localhost\n") }, Good, "", "a join adds a line"},
		{bootstrap.IDHostname, "lost", func(c *clinic) { c.state("joined"); c.put("etc/hosts", "127.0.0.1 localhost\n") }, Bad, "", "answers 500"},
		{bootstrap.IDHostname, "another address, and the release takes it", func(c *clinic) {
			release("2.4.3")(c)
			c.put("etc/hosts", "10.9.9.9 node-1\n")
		}, Bad, "", "10.9.9.9"},
		{bootstrap.IDHostname, "several, and the release takes the first", func(c *clinic) {
			release("2.4.3")(c)
			c.put("etc/hosts", "10.0.0.5 node-1\n10.0.0.6 node-1\n")
		}, Warning, "", "takes the first"},
		{bootstrap.IDHostname, "no name", func(c *clinic) { c.remove("etc/hostname") }, Warning, "", "could not be looked up"},
		{bootstrap.IDHostname, "no name, no identity", func(c *clinic) {
			identified(metadata.Instance{}, errors.New("no answer"))(c)
			c.remove("etc/hostname")
		}, Unknown, "", "hostname"},

		{idHosts, "clean", nil, Good, "", "no fault found"},
		{idHosts, "an address without a name", func(c *clinic) { c.put("etc/hosts", "127.0.0.1 localhost\n10.0.0.21\n") }, Warning, "", "line 2"},
		{idHosts, "no address", func(c *clinic) { c.put("etc/hosts", "node-1 10.0.0.5\n") }, Warning, "", "begins with no address"},
		{idHosts, "two addresses", func(c *clinic) { c.put("etc/hosts", "10.0.0.5 node-1\n10.0.0.9 node-1 # old\n") }, Warning, "", "10.0.0.5, 10.0.0.9"},
		{idHosts, "no file", func(c *clinic) { c.remove("etc/hosts") }, Good, "", "no /etc/hosts"},
		{idHosts, "a folder", func(c *clinic) { c.remove("etc/hosts"); c.put("etc/hosts/x", "") }, Unknown, "", ""},

		{idPeers, "alone", peersAt(), Good, "", "no other node"},
		{idPeers, "no address", peersAt(peer{address: "db.example.org", port: open}, peer{address: "fe80::1%lo", port: open}), Good, "", "no other node"},
		{idPeers, "all answer", peersAt(peer{address: "127.0.0.1", port: open}), Good, "", "1 of 1"},
		{idPeers, "no listener", peersAt(peer{address: "127.0.0.1", port: closed}), Warning, "", "no server listens at 127.0.0.1"},
		{idPeers, "no way", func(c *clinic) {
			peersAt(peer{address: "240.0.0.1", port: open})(c)
			c.dial = func(context.Context, string) error { return context.DeadlineExceeded }
		}, Bad, "", "no connection to 240.0.0.1"},
		{idPeers, "a tree", func(c *clinic) {
			peersAt(peer{address: "127.0.0.1", port: open})(c)
			c.running = false
		}, Unknown, "", "does not run"},
		{idPeers, "no MongoDB", nil, Unknown, "", "no MongoDB address is known"},

		{idPorts, "free", ports("", ams.State{Activity: ams.ActivityInactive}), Good, "", "free"},
		{idPorts, "the server's", ports("tcp 5080", ams.State{Activity: ams.ActivityActive, MainPID: 7}), Good, "", "the server runs"},
		{idPorts, "taken", ports("tcp 5080", ams.State{Activity: ams.ActivityInactive}), Bad, "", "port 5080 (HTTP) is taken"},
		{idPorts, "SRT is taken", ports("udp 4200", ams.State{Activity: ams.ActivityInactive}), Bad, "", "port 4200 (SRT) is taken"},
		{idPorts, "another port is configured", func(c *clinic) {
			ports("tcp 1936", ams.State{Activity: ams.ActivityInactive})(c)
			c.put(server, "rtmp.port=1936\nclusterdb.host=\n")
		}, Bad, "", "port 1936 (RTMP) is taken"},
		{idPorts, "RTMPS is off", ports("tcp 8443", ams.State{Activity: ams.ActivityInactive}), Good, "", "free"},
		{idPorts, "RTMPS is on", func(c *clinic) {
			ports("tcp 8443", ams.State{Activity: ams.ActivityInactive})(c)
			c.put(server, "rtmps.enabled=true\nclusterdb.host=\n")
		}, Bad, "", "port 8443 (RTMPS) is taken"},
		{idPorts, "taken by IPv6", ports("tcp6 5080", ams.State{Activity: ams.ActivityInactive}), Bad, "", "port 5080 (HTTP) is taken"},
		{idPorts, "the sockets cannot be read", func(c *clinic) {
			ports("", ams.State{Activity: ams.ActivityInactive})(c)
			c.remove("proc/net/udp")
		}, Unknown, "", "proc/net/udp"},
		{idPorts, "the service does not say", ports("", ams.State{Activity: ams.ActivityUnknown}), Unknown, "", "not known"},
		{idPorts, "a tree", nil, Unknown, "", "does not run"},
	}
}

// ports is a running machine with a socket at one port, as "tcp 5080", and a connection from another one.
func ports(taken string, state ams.State) func(c *clinic) {
	return func(c *clinic) {
		c.running, c.service.state = true, state
		line := func(port, state string) string {
			return "   0: 00000000:" + port + " 00000000:0000 " + state + " 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n"
		}
		tables := map[string]string{"tcp": line("078F", "01"), "udp": ""} // RTMP's port, not listening
		if network, port, ok := strings.Cut(taken, " "); ok {
			n, err := strconv.Atoi(port)
			must.OK(c.t, err)
			tables[network] += line(fmt.Sprintf("%04X", n), "0A")
		}
		for table, lines := range tables {
			c.put("proc/net/"+table, "  sl  local_address rem_address   st\n"+lines)
		}
	}
}

func TestNetwork(t *testing.T) {
	open, closed := listener(t), listener(t)
	closed.Close()
	runCases(t, networkCases(port(open.Addr()), port(closed.Addr())))
}

func hooked(v cloud.Check, err error) func(c *clinic) {
	return func(c *clinic) {
		c.o.Hooks = func(context.Context) (cloud.Check, error) { return v, err }
		c.o.Drain, c.o.Reserve = func() time.Duration { return time.Hour }, 30*time.Second
	}
}

// aHook is a group with a hook, whose limit counts from the time at which the doctor asks for it.
func aHook(timeout, limit time.Duration, change ...func(*cloud.Hook)) func(c *clinic) {
	return func(c *clinic) {
		hooked(cloud.Check{}, nil)(c)
		c.o.Hooks = func(context.Context) (cloud.Check, error) {
			h := cloud.Hook{Name: "drain", Timeout: seconds.Duration(timeout), Limit: time.Now().Add(limit)}
			for _, f := range change {
				f(&h)
			}
			return cloud.Check{Group: "edges", Ours: []cloud.Hook{h}, Unproved: "may keep it waiting"}, nil
		}
	}
}

// unit answers for every unit.
func unit(states map[string]ams.State) func(context.Context, string) (ams.State, error) {
	return func(_ context.Context, name string) (ams.State, error) {
		s, ok := states[name]
		if !ok {
			return s, fmt.Errorf("asking about %s: %w", name, ams.ErrNoUnit)
		}
		return s, nil
	}
}

func goingCases() []aCase {
	good := aHook(30*time.Minute, 48*time.Hour)
	return []aCase{
		{idHook, "there", good, Good, "", "drain of group edges; may keep it waiting"},
		{idHook, "default result", aHook(time.Minute, time.Hour, func(h *cloud.Hook) { h.Abandons = true }), Good, "", "drain ends with ABANDON"},
		{idHook, "no hook", hooked(cloud.Check{Group: "edges"}, nil), Warning, "", "a scale-in cuts"},
		{idHook, "hooks of others", hooked(cloud.Check{Group: "edges", Others: []string{"drain", "logs"}}, nil), Warning, "", "none is this agent's: drain, logs"},
		{idHook, "no group", hooked(cloud.Check{}, nil), Good, "", "in no scaling group"},
		{idHook, "no cloud", hooked(cloud.Check{Without: "no hooks of generic"}, nil), Good, "", "no hooks of generic"},
		{idHook, "denied", hooked(cloud.Check{}, &cloud.DeniedError{Permission: "autoscaling:DescribeLifecycleHooks", Policy: `{"Version":"2012-10-17"}`, Reason: "not authorized"}), Bad, idHookDenied, "autoscaling:DescribeLifecycleHooks is missing: not authorized"},
		{idHook, "not reported to the machine", hooked(cloud.Check{Group: "edges", Untold: "only outside", Ask: "az vmss show"}, nil), Unknown, "", "only outside"},
		{idHook, "no identity", func(c *clinic) {
			hooked(cloud.Check{}, errors.New("not asked"))(c)
			identified(metadata.Instance{}, errors.New("hush"))(c)
		}, Unknown, "", "without an identity"},
		{idHook, "no answer", hooked(cloud.Check{}, errors.New("no answer")), Unknown, "", "no answer"},
		{idHook, "not asked", nil, Unknown, "", "not asked"},

		{idTimeline, "all fits", func(c *clinic) {
			good(c)
			c.o.Unit = unit(map[string]ams.State{daemonUnit: {StopTimeout: 15 * time.Minute}})
			c.service.state = ams.State{Activity: ams.ActivityActive, StopTimeout: 10 * time.Second}
		}, Good, "", "drain deadline 1h · hook drain waits 30m at a time, 48h in all · power-off gives it 15m (less: who is still there is cut) · the server's stop 10s (a join makes it"},
		{idTimeline, "the hook ends first", aHook(30*time.Minute, 20*time.Minute), Warning, "", "the sessions get 19m30s and not 1h"},
		{idTimeline, "a hook too quick for one lost call", aHook(40*time.Second, 48*time.Hour), Warning, "", "timeout of 40s"},
		{idTimeline, "killed while it stops", func(c *clinic) {
			c.join("10.0.2.4")
			c.service.state = ams.State{Activity: ams.ActivityActive, StopTimeout: 10 * time.Second}
		}, Warning, "", "kills the server 10s after"},
		{idTimeline, "unknown", func(c *clinic) { c.o.Drain = nil }, Unknown, "", "not known"},
	}
}

func TestGoing(t *testing.T) { runCases(t, goingCases()) }

// All deadlines in one picture: what comes first stands first.
func TestTimelineLines(t *testing.T) {
	hook := hooks{name: "drain", timeout: 15 * time.Minute, limit: 48 * time.Hour}
	short := hooks{name: "drain", timeout: 10 * time.Minute, limit: 20 * time.Minute}
	for _, tt := range []struct {
		name string
		t    timeline
		want []string
	}{
		{"nothing but a deadline", timeline{drain: time.Hour}, []string{
			"drain           +0s  no new sessions",
			"                +1h  drain deadline: remaining sessions are cut, the server stops",
		}},
		{"all fits", timeline{drain: time.Hour, reserve: 30 * time.Second, hook: hook, stop: 90 * time.Second, off: 15 * time.Minute}, []string{
			"drain           +0s  no new sessions",
			"             +7m30s  hook drain is extended, then every 7m30s (it waits 15m)",
			"                +1h  drain deadline: remaining sessions are cut, the server stops",
			"           +1h1m30s  systemd kills a server that has not ended",
			"               +48h  hook drain ends at the latest",
			"power-off      +15m  remaining sessions are cut, the server stops",
			"            +16m30s  systemd kills a server that has not ended",
		}},
		{"the hook ends first, the power-off last", timeline{drain: 30 * time.Minute, reserve: 30 * time.Second, hook: short, off: time.Hour}, []string{
			"drain           +0s  no new sessions",
			"                +5m  hook drain is extended, then every 5m (it waits 10m)",
			"            +19m30s  the hook's time, less the last steps: remaining sessions are cut",
			"               +20m  hook drain ends at the latest",
			"power-off      +30m  drain deadline: remaining sessions are cut, the server stops",
			"                +1h  systemd waits for the drain no longer",
		}},
		{"a cloud without hooks", timeline{drain: time.Hour, window: 2 * time.Minute, off: 15 * time.Minute}, []string{
			"drain           +0s  no new sessions",
			"                +1h  drain deadline: remaining sessions are cut, the server stops",
			"power-off       +2m  the cloud switches off: drain and stop are cut to fit",
			"               +15m  remaining sessions are cut, the server stops",
		}},
	} {
		must.NoDiff(t, tt.name, tt.t.lines(), tt.want)
	}
	c := newClinic(t)
	aHook(15*time.Minute, 48*time.Hour)(c)
	c.o.Unit = unit(map[string]ams.State{daemonUnit: {StopTimeout: 15 * time.Minute}})
	c.service.state = ams.State{Activity: ams.ActivityActive, StopTimeout: 10 * time.Second}
	if r := c.check(idTimeline); len(r) != 1 || len(r[0].Lines) != 7 || !strings.HasPrefix(r[0].Lines[3], "              +1h2m ") {
		t.Errorf("%+v", r)
	}
}

func agentCases() []aCase {
	active := ams.State{Activity: ams.ActivityActive, Sub: "running", Load: "loaded", UnitFile: "enabled"}
	with := func(s ams.State, f func(*ams.State)) ams.State { f(&s); return s }
	state := func(s ams.State) func(c *clinic) { return func(c *clinic) { c.service.state = s } }
	units := func(joined bool, daemon ams.State, names ...string) func(c *clinic) {
		return func(c *clinic) {
			if joined {
				c.state("joined")
			}
			all := map[string]ams.State{"amsagent-node.service": active, daemonUnit: daemon}
			for _, n := range names {
				delete(all, n)
			}
			c.o.Unit = unit(all)
		}
	}
	daemon := func(joined bool, v DaemonView, err error) func(c *clinic) {
		return func(c *clinic) {
			c.running = true
			if joined {
				c.state("joined")
			}
			c.o.Daemon = func(context.Context) (DaemonView, error) { return v, err }
		}
	}
	nodeWithDropIn := func(c *clinic) { c.o.Machine.DropIn = true; c.join("10.0.2.4") }
	readable := func(name string) func(c *clinic) {
		return func(c *clinic) {
			c.join("10.0.2.4")
			for _, path := range []string{"var", "var/lib", "var/lib/amsagent"} {
				c.mode(path, 0o755)
			}
			for _, file := range []string{"undo.json", "state.json"} {
				c.mode("var/lib/amsagent/"+file, 0o600)
			}
			c.mode("var/lib/amsagent/"+name, 0o644)
		}
	}
	status := func(s bootstrap.Status, err error) func(c *clinic) {
		return func(c *clinic) { c.status = finished(&s, err) }
	}
	return []aCase{
		{bootstrap.IDRecord, "never joined", nil, Good, "", "never joined"},
		{bootstrap.IDRecord, "joined", func(c *clinic) { c.join("10.0.2.4") }, Good, "", "joined as 10.0.0.5"},
		{bootstrap.IDRecord, "a copy of another machine's disk", func(c *clinic) {
			c.join("10.0.2.4")
			identified(metadata.Instance{ID: "i-2", Provider: "aws", Address: netip.MustParseAddr("10.0.0.5")}, nil)(c)
		}, Bad, bootstrap.IDCloned, "remembers i-1, and this machine is i-2"},
		{bootstrap.IDRecord, "edited offline", func(c *clinic) { c.join("10.0.2.4"); c.remove("var/lib/amsagent/state.json") }, Good, "", "can be restored"},
		{bootstrap.IDRecord, "the undo record is lost", func(c *clinic) { c.state("joined") }, Warning, "", "is not there"},
		{bootstrap.IDRecord, "damaged", func(c *clinic) { c.put("var/lib/amsagent/undo.json", "{") }, Bad, "", "undo.json"},
		{bootstrap.IDRecord, "of a later version", func(c *clinic) { c.put("var/lib/amsagent/state.json", `{"version":99}`) }, Bad, "", "99"},
		{bootstrap.IDRecord, "interrupted", func(c *clinic) { c.put("var/lib/amsagent/journal", "{}") }, Bad, idUnfinished, "killed while it wrote"},
		{bootstrap.IDRecord, "cannot be looked at", func(c *clinic) { c.put("var/lib/amsagent/undo.json/x", "") }, Unknown, "", "undo.json"},

		{bootstrap.IDConfig, "read", func(c *clinic) { c.o.ConfigSeen = "/etc/amsagent/config.yaml is read" }, Good, "", "is read"},
		{bootstrap.IDConfig, "wrong", func(c *clinic) {
			c.o.Config = []bootstrap.Finding{{ID: "AGENT-CONFIG", Severity: Bad, Text: "config.yaml:3: unknown key", Hint: "did you mean role?"}}
		}, Bad, "", "unknown key"},
		{bootstrap.IDConfig, "not read", nil, Unknown, "", "not read"},

		{idSecret, "none", nil, Good, "", "no password"},
		{idSecret, "kept", func(c *clinic) { c.secret(0o600) }, Good, "", "other users cannot read it"},
		{idSecret, "readable by all", func(c *clinic) { c.secret(0o644) }, Bad, "", "/etc/amsagent/mongo"},
		{idSecret, "readable by all, in a closed folder", func(c *clinic) { c.secret(0o644); c.mode("etc/amsagent", 0o700) }, Good, "", "other users cannot read it"},
		{idSecret, "in the server's files", func(c *clinic) { c.put(server, "clusterdb.host=mongodb://u:secret@10.0.2.4\n") }, Bad, "", "red5.properties"},
		{idSecret, "in a key of its own", func(c *clinic) { c.put(liveApp, "db.host=10.0.2.4\ndb.password=secret\n") }, Bad, "", "LiveApp"},
		{idSecret, "in the undo record", readable("undo.json"), Bad, "", "undo.json"},
		{idSecret, "in an undo record that is larger than other files", func(c *clinic) {
			readable("undo.json")(c)
			must.OK(c.t, os.Truncate(c.at("var/lib/amsagent/undo.json"), 8<<20))
		}, Bad, "", "undo.json"},
		{idSecret, "in the state", readable("state.json"), Bad, "", "state.json"},
		{idSecret, "no secret", func(c *clinic) { c.secret(0o644); c.put("etc/amsagent/mongo", "10.0.2.4\n") }, Good, "", "no password"},
		{idSecret, "a folder", func(c *clinic) { c.o.Secrets = []string{"/etc"} }, Unknown, "", "etc"},

		{bootstrap.IDService, "answers", state(active), Good, "", "answers"},
		{bootstrap.IDService, "masked", state(with(active, func(s *ams.State) { s.Load = "masked" })), Bad, "", "masked"},
		{bootstrap.IDService, "no systemd", func(c *clinic) { c.service.err = ams.ErrNoSystemd }, Bad, "", "not available"},
		{bootstrap.IDService, "not controlled here", nil, Unknown, "", "not controlled here"},

		{idUnit, "runs", state(active), Good, "", "antmedia.service is active"},
		{idUnit, "failed", state(ams.State{Activity: ams.ActivityFailed, Result: "exit-code", Exit: "exit status 1"}), Bad, "", "failed (exit-code"},
		{idUnit, "dies again and again", state(ams.State{Activity: ams.ActivityActivating, Sub: "auto-restart"}), Bad, "", "again and again"},
		{idUnit, "started again often", state(with(active, func(s *ams.State) { s.Restarts = 7 })), Warning, "", "7 times"},
		{idUnit, "not at boot", state(with(active, func(s *ams.State) { s.UnitFile = "disabled" })), Warning, bootstrap.IDNotEnabled, "at boot"},
		{idUnit, "not read again", state(with(active, func(s *ams.State) { s.NeedReload = true })), Warning, idReload, "not read them again"},
		{idUnit, "not known", nil, Unknown, "", "not known"},

		{idDropIn, "no node", nil, Good, "", "not a cluster node"},
		{idDropIn, "written", nodeWithDropIn, Good, "", "AMS_HOST_ADDRESS=10.0.0.5"},
		{idDropIn, "lost", func(c *clinic) { nodeWithDropIn(c); c.remove("etc/systemd") }, Bad, "", "is lost"},
		{idDropIn, "another address", func(c *clinic) { nodeWithDropIn(c); c.edit(ams.DropInPath, "10.0.0.5", "10.0.0.6") }, Bad, "", "10.0.0.6"},
		{idDropIn, "left over", func(c *clinic) { c.put(ams.DropInPath, string(ams.DropIn(netip.MustParseAddr("10.0.0.5"), 0, ""))) }, Warning, "", "still there"},
		{idDropIn, "unknown to systemd", func(c *clinic) {
			nodeWithDropIn(c)
			c.service.state = with(active, func(s *ams.State) { s.Fragment = "/etc/systemd/system/antmedia.service" })
		}, Bad, "", "does not know of it"},
		{idDropIn, "overruled", func(c *clinic) {
			nodeWithDropIn(c)
			c.service.state = with(active, func(s *ams.State) {
				s.Fragment, s.DropIns, s.HostAddress = "/x", []string{ams.DropInPath, "/x/60-local.conf"}, "10.7.7.7"
			})
		}, Bad, "", "10.7.7.7"},
		{idDropIn, "overruled by a file", func(c *clinic) {
			nodeWithDropIn(c)
			c.service.state = with(active, func(s *ams.State) {
				s.Fragment, s.DropIns, s.HostAddress, s.HostAddressFile = "/x", []string{ams.DropInPath}, "10.7.7.7", "/etc/default/antmedia"
			})
		}, Bad, "", "/etc/default/antmedia overrides ours"},
		{idDropIn, "less time to stop", func(c *clinic) {
			nodeWithDropIn(c)
			c.service.state = with(active, func(s *ams.State) {
				s.Fragment, s.DropIns, s.StopTimeout = "/x", []string{ams.DropInPath, "/x/override.conf"}, 10*time.Second
			})
		}, Good, "", "10s to stop"},
		{idDropIn, "a folder", func(c *clinic) { c.put(ams.DropInPath+"/x", "") }, Unknown, "", ""},

		{bootstrap.IDDaemon, "runs", units(true, active), Good, "", "amsagent.service active"},
		{bootstrap.IDDaemon, "before a join", units(false, ams.State{Activity: ams.ActivityInactive, Load: "loaded", UnitFile: "disabled"}), Good, "", "a join starts them"},
		{bootstrap.IDDaemon, "stopped on a node", units(true, ams.State{Activity: ams.ActivityInactive, Load: "loaded", UnitFile: "enabled"}), Bad, "", "inactive, on a node"},
		{bootstrap.IDDaemon, "disabled on a node", units(true, with(active, func(s *ams.State) { s.UnitFile = "disabled" })), Bad, "", "at boot"},
		{bootstrap.IDDaemon, "masked", units(false, with(active, func(s *ams.State) { s.Load = "masked" })), Warning, "", "masked"},
		{bootstrap.IDDaemon, "masked on a node", units(true, with(active, func(s *ams.State) { s.Load = "masked" })), Bad, "", "masked"},
		{bootstrap.IDDaemon, "failed", units(false, ams.State{Activity: ams.ActivityFailed, Load: "loaded"}), Bad, "", "failed"},
		{bootstrap.IDDaemon, "not read again", units(true, with(active, func(s *ams.State) { s.NeedReload = true })), Warning, idReload, "not read"},
		{bootstrap.IDDaemon, "not installed", units(false, active, daemonUnit, "amsagent-node.service"), Warning, "", "nothing drains this node"},
		{bootstrap.IDDaemon, "not installed on a node", units(true, active, daemonUnit), Warning, "", "nothing drains this node"},
		{bootstrap.IDDaemon, "no systemd", nil, Unknown, "", "no service manager"},

		{idNoDaemon, "well", daemon(true, DaemonView{Version: "test", Activity: "beating"}, nil), Good, "", "beating"},
		{idNoDaemon, "none, on a node", daemon(true, DaemonView{}, fmt.Errorf("x: %w", ErrNoDaemon)), Bad, "", "nothing drains it"},
		{idNoDaemon, "none, before a join", daemon(false, DaemonView{}, ErrNoDaemon), Good, "", "none is needed"},
		{idNoDaemon, "trouble", daemon(true, DaemonView{Version: "test", Trouble: []string{"MongoDB does not answer"}}, nil), Warning, idTrouble, "MongoDB does not answer"},
		{idNoDaemon, "launch hooks of others", daemon(true, DaemonView{Version: "test", Activity: "beating", LaunchHooks: "none of up, install is this agent's"}, nil), Good, idHook, "up, install"},
		{idNoDaemon, "another version", daemon(true, DaemonView{Version: "older"}, nil), Warning, idTrouble, "of version older"},
		{idNoDaemon, "hangs", daemon(true, DaemonView{}, errors.New("no answer")), Unknown, "", "no answer"},

		{idViews, "no node", nil, Good, "", "not a cluster node"},
		{idViews, "agree", status(bootstrap.Status{Member: true, Row: bootstrap.RowView{Looked: true, Address: "10.0.0.5"}}, nil), Good, "", "in the cluster as 10.0.0.5"},
		{idViews, "disagree", status(bootstrap.Status{Member: true, Disagree: []bootstrap.Finding{{ID: "AMS-DRIFT", Severity: Warning, Text: "edited", Hint: "join"}}}, nil), Warning, "AMS-DRIFT", "edited"},
		{idViews, "not seen by the others", status(bootstrap.Status{Member: true, Disagree: []bootstrap.Finding{{ID: "AMS-NOT-SEEN", Severity: Bad, Text: "old", Hint: "look"}}}, nil), Bad, "AMS-NOT-SEEN", "old"},
		{idViews, "viewers are not served", status(bootstrap.Status{Member: true, Disagree: []bootstrap.Finding{{ID: "AMS-NOT-SERVING", Severity: Bad, Text: "LiveApp fails", Hint: "look"}}}, nil), Bad, "AMS-NOT-SERVING", "LiveApp fails"},
		{idViews, "the registry was not seen", status(bootstrap.Status{Member: true, Row: bootstrap.RowView{Err: "no answer"}}, nil), Unknown, "", "no answer"},
		{idViews, "nothing was seen", status(bootstrap.Status{}, fs.ErrPermission), Unknown, "", "permission"},
	}
}

func (c *clinic) secret(mode os.FileMode) {
	c.o.Secrets = []string{bootstrap.MongoPath}
	c.put(bootstrap.MongoPath, "mongodb://u:secret@10.0.2.4\n")
	c.mode(bootstrap.MongoPath, mode)
}

func TestAgent(t *testing.T) { runCases(t, agentCases()) }

func machineCases() []aCase {
	running := func(f func(c *clinic)) func(c *clinic) {
		return func(c *clinic) {
			c.running = true
			if f != nil {
				f(c)
			}
		}
	}
	gpu := func(driver string, v GPUView, err error) func(c *clinic) {
		return running(func(c *clinic) {
			c.put("sys/bus/pci/devices/0000:00:1e.0/vendor", "0x10de\n")
			c.put("sys/bus/pci/devices/0000:00:1e.0/class", "0x030200\n")
			if driver != "" {
				c.link("sys/bus/pci/devices/0000:00:1e.0/driver", "../../drivers/"+driver)
			}
			// The sound of the same card.
			c.put("sys/bus/pci/devices/0000:00:1e.1/vendor", "0x10de\n")
			c.put("sys/bus/pci/devices/0000:00:1e.1/class", "0x040300\n")
			c.o.GPUs = func(context.Context) (GPUView, error) { return v, err }
		})
	}
	return []aCase{
		{bootstrap.IDWritable, "writable", nil, Good, "", "the folders"},
		{bootstrap.IDWritable, "none", noServer, Unknown, "", ""},
		{bootstrap.IDSpace, "enough", nil, Good, "", "left on the volume"},

		{idTimeSync, "a tree", nil, Unknown, "", "does not run"},

		{idGPU, "none", running(nil), Good, "", "no GPU of NVIDIA"},
		{idGPU, "well", gpu("nvidia", GPUView{Devices: []string{"Tesla T4"}, Driver: "535.161.07"}, nil), Good, "", "Tesla T4; driver 535.161.07"},
		{idGPU, "no driver", gpu("", GPUView{}, nil), Bad, idGPUDriver, "no driver has it"},
		{idGPU, "nouveau", gpu("nouveau", GPUView{}, nil), Bad, idGPUDriver, "nouveau"},
		{idGPU, "handed on", gpu("vfio-pci", GPUView{}, nil), Good, "", "no GPU of NVIDIA"},
		{idGPU, "does not answer", gpu("nvidia", GPUView{Trouble: "Driver/library version mismatch"}, nil), Bad, idGPUDriver, "mismatch"},
		{idGPU, "lost", gpu("nvidia", GPUView{Driver: "535.1"}, nil), Bad, idGPUDriver, "the driver shows 0"},
		{idGPU, "old", gpu("nvidia", GPUView{Devices: []string{"Tesla K80"}, Driver: "390.157"}, nil), Warning, idGPUDriver, "too old"},
		{idGPU, "not asked", func(c *clinic) { gpu("nvidia", GPUView{}, nil)(c); c.o.GPUs = nil }, Unknown, "", "not asked"},
		{idGPU, "hangs", gpu("nvidia", GPUView{}, context.DeadlineExceeded), Unknown, "", "in time"},
		{idGPU, "a tree", nil, Unknown, "", "does not run"},
	}
}

func TestMachine(t *testing.T) { runCases(t, machineCases()) }

// Every check has a case in which it is good, one in which something is wrong, and one in which it is not known.
func TestEveryCheckHasItsCases(t *testing.T) {
	have := map[string]map[bootstrap.Severity]bool{}
	for _, cases := range [][]aCase{serverCases(), mongoCases(), networkCases(1, 1), goingCases(), agentCases(), machineCases()} {
		for _, c := range cases {
			if have[c.check] == nil {
				have[c.check] = map[bootstrap.Severity]bool{}
			}
			v := c.verdict
			if v == Warning {
				v = Bad
			}
			have[c.check][v] = true
		}
	}
	// sandbox/clustertest has the cases with a server that answers, TestJudge those of the kernel's clock.
	elsewhere := map[string][]bootstrap.Severity{
		bootstrap.IDMongoAuth: {Good}, idNotPrimary: {Good}, idMongoOpen: {Good, Bad}, idMongoSlow: {Good, Bad},
		bootstrap.IDClock:   {Good},
		bootstrap.IDAddress: {Good}, bootstrap.IDWritable: {Bad}, bootstrap.IDSpace: {Bad, Unknown}, idTimeSync: {Good, Bad},
	}
	for _, c := range checks() {
		for _, v := range []bootstrap.Severity{Good, Bad, Unknown} {
			if !have[c.id][v] && !slices.Contains(elsewhere[c.id], v) {
				t.Errorf("%s has no case in which it is %s", c.id, v)
			}
		}
	}
}
