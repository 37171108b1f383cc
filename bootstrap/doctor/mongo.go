// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
)

// Bounds of latency: AMS asks MongoDB several times while a viewer waits.
const (
	slowPing = 50 * time.Millisecond
	pings    = 5
)

func checkMongoAddress(_ context.Context, p *patient) []Result {
	switch {
	case !p.Join.Mongo.IsZero():
		text := p.Join.Mongo.Redacted()
		if p.MongoFrom != "" {
			text += ", from " + p.MongoFrom
		}
		return one(good("%s", text))
	case p.MongoErr != nil:
		return one(bad("", "%v", p.MongoErr).from(p.MongoErr))
	}
	r := unknown("%v", errNoMongo)
	r.Hint = "give --mongo ADDRESS, as join gets it"
	return one(r)
}

func checkMongoForm(_ context.Context, p *patient, in *bootstrap.Inspection) []Result {
	switch found := findings(in.Findings, bootstrap.IDMongoForm); {
	case len(found) > 0:
		return found
	case p.Join.Mongo.IsZero():
		return one(unknown("%v", p.noMongo()))
	case in.Install == nil:
		return one(noInstall())
	}
	return one(good("release %s can use it", in.Install.Release))
}

func checkMongoLocal(_ context.Context, p *patient, in *bootstrap.Inspection) []Result {
	if p.Join.Mongo.IsZero() {
		return one(unknown("%v", p.noMongo()))
	}
	if found := findings(in.Findings, bootstrap.IDMongoLocal); len(found) > 0 {
		return found
	}
	switch {
	case !p.Join.Mongo.Loopback():
		return one(good("not only this machine's own"))
	case !in.Address.Addr.IsValid():
		return one(unknown("MongoDB is this very machine; whether other machines join is not known without this machine's address"))
	}
	return one(good("this very machine, and so is the node's address: a cluster of one machine"))
}

// refused are the failures that are a matter of the login, and not of reaching it.
func refused(f bootstrap.Finding) bool { return f.ID == bootstrap.IDMongoAuth }

func notPrimary(f bootstrap.Finding) bool { return cluster.KindOf(f.Err) == cluster.KindNotPrimary }

// failedBy is the failure that concerns a check; another one kept it from being made.
func failedBy(failed []bootstrap.Finding, concerns func(bootstrap.Finding) bool) Result {
	i := slices.IndexFunc(failed, concerns)
	if i < 0 {
		return unknown("MongoDB could not be asked")
	}
	return Result{Finding: failed[i]}.as("")
}

func checkMongoAnswer(ctx context.Context, p *patient) []Result {
	r, err := p.mongo.get(ctx)
	if err != nil {
		return one(unknown("%v", err))
	}
	var found []Result
	for _, f := range r.failed {
		if !refused(f) && !notPrimary(f) {
			found = append(found, Result{Finding: f})
		}
	}
	if len(found) > 0 {
		return found
	}
	return one(good("MongoDB at %s answers", strings.Join(p.Join.Mongo.Hosts(), ", ")))
}

func checkMongoAuth(ctx context.Context, p *patient) []Result {
	r, err := p.mongo.get(ctx)
	if err != nil {
		return one(unknown("%v", err))
	}
	if len(r.failed) > 0 {
		return one(failedBy(r.failed, refused))
	}
	if in, err := p.inspection.get(ctx); err == nil && in.Install != nil {
		if databases, err := in.Install.Databases(); err == nil {
			if err := r.client.CheckRead(ctx, databases); cluster.KindOf(err) == cluster.KindForbidden {
				return one(warning(bootstrap.ReadHint, "%v", err))
			}
		}
	}
	if p.Join.Mongo.HasCredentials() {
		return one(good("user %s may do what a node needs", strconv.Quote(p.Join.Mongo.Username())))
	}
	return one(good("without a user, all that a node needs is allowed"))
}

func checkMongoWrites(ctx context.Context, p *patient) []Result {
	r, err := p.mongo.get(ctx)
	if err != nil {
		return one(unknown("%v", err))
	}
	if len(r.failed) > 0 {
		return one(failedBy(r.failed, notPrimary))
	}
	set := r.client.ReplicaSet()
	switch {
	case set.Name == "":
		return one(good("taken; a single server: while it is away nothing is written"))
	case set.OneNamed:
		return one(warning(bootstrap.MongoMemberHint(set.Name, set.Hosts), "%s", bootstrap.MongoMemberText(set.Name, len(set.Hosts))).as(bootstrap.IDMongoMember))
	case len(set.Hosts) < 3:
		return one(good("taken; replica set %s of %d: it takes none while one of them is away", set.Name, len(set.Hosts)))
	}
	return one(good("taken; replica set %s of %d", set.Name, len(set.Hosts)))
}

// checkMongoOpen asks as a stranger would, and only at the address that is configured.
func checkMongoOpen(ctx context.Context, p *patient) []Result {
	if p.Join.Mongo.IsZero() {
		return one(unknown("%v", p.noMongo()))
	}
	r, err := p.mongo.get(ctx)
	if err != nil {
		return one(unknown("%v", err))
	}
	if slices.ContainsFunc(r.failed, func(f bootstrap.Finding) bool { return !refused(f) && !notPrimary(f) }) {
		return one(unknown("MongoDB could not be asked"))
	}
	ctx, cancel := context.WithTimeout(ctx, p.reachTime())
	defer cancel()
	open, err := cluster.OpenToAll(ctx, p.Join.Mongo, p.Connect)
	switch {
	case err != nil:
		return one(unknown("MongoDB could not be asked without a password: %v", err))
	case !open:
		return one(good("nothing is shown to who does not log in"))
	case p.Join.Mongo.Loopback():
		return one(good("open without a password, at a loopback address: to this machine's own users"))
	}
	return one(warning("switch security.authorization on in mongod.conf, and make a user for the cluster",
		"MongoDB at %s shows its databases without a password: any client that reaches that port can read and delete all of them", strings.Join(p.Join.Mongo.Hosts(), ", ")))
}

// checkMongoPlain: what goes over a public network must be encrypted.
func checkMongoPlain(ctx context.Context, p *patient) []Result {
	t := p.Join.Mongo
	switch {
	case t.IsZero():
		return one(unknown("%v", p.noMongo()))
	case t.UsesTLS():
		return one(good("TLS"))
	}
	ctx, cancel := context.WithTimeout(ctx, p.askTime())
	defer cancel()
	var public []string
	for _, name := range t.HostNames() {
		addrs, err := lookup(ctx, name)
		if err != nil {
			return one(unknown("without TLS; whether %s is a public address is not known: %v", name, err))
		}
		if slices.ContainsFunc(addrs, isPublic) {
			public = append(public, name)
		}
	}
	if len(public) > 0 {
		return one(warning("use the private address, or TLS: tls=true in a mongodb:// URI",
			"%s is a public address, and nothing is encrypted on the way there, the data of viewers included", few(public)))
	}
	return one(good("without TLS, in a private network"))
}

func lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}, nil
	}
	return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
}

// isPublic: neither this machine's, nor private, nor a carrier's shared space.
func isPublic(a netip.Addr) bool {
	a = a.Unmap()
	shared := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)
	return a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a)
}

// asked runs a check that needs a MongoDB that answers.
func asked(ctx context.Context, p *patient, f func(c *cluster.Client) Result) []Result {
	c, err := p.client(ctx)
	if err != nil {
		return one(unknown("%v", err))
	}
	return one(f(c))
}

func checkMongoSlow(ctx context.Context, p *patient) []Result {
	return asked(ctx, p, func(c *cluster.Client) Result {
		d, err := c.Latency(ctx, pings)
		switch {
		case err != nil:
			return notKnown(err)
		case d > slowPing:
			return warning("put the database into the region, better the zone, of the nodes",
				"%s for a round trip (median of %d): the server asks several times before a viewer sees anything", roundTrip(d), pings)
		}
		return good("%s for a round trip (median of %d)", roundTrip(d), pings)
	})
}

func roundTrip(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

func checkClock(ctx context.Context, p *patient) []Result {
	r, err := p.mongo.get(ctx)
	if err != nil {
		return one(unknown("%v", err))
	}
	if found := findings(r.findings, bootstrap.IDClock, bootstrap.IDUnverified); len(found) > 0 {
		return found
	}
	return asked(ctx, p, func(c *cluster.Client) Result {
		skew, accuracy, err := c.ClockSkew(ctx)
		switch {
		case err != nil:
			return notKnown(err)
		case skew.Abs() <= accuracy:
			return good("the same")
		case skew < 0:
			return good("%s behind", skew.Abs().Round(time.Millisecond))
		}
		return good("%s ahead", skew.Round(time.Millisecond))
	})
}

// checkRows finds a second node with this address: its row or its document.
func checkRows(_ context.Context, _ *patient, look cluster.Look, in *bootstrap.Inspection) []Result {
	id, address := ownNode(in)
	if address == "" {
		return one(unknown("this machine's address is not known"))
	}
	var found []Result
	var o cluster.Observer
	for _, m := range o.Observe(look) {
		n := m.Node
		if n == nil {
			continue
		}
		if age, used := n.UsedByOther(cluster.Node{ID: id, IP: address, BootID: in.BootID}, look.ServerTime); used {
			found = append(found, bad(bootstrap.DuplicateHint,
				"another machine uses this one's id %s: %s wrote its row %s ago", n.ID, n.IP, age.Round(time.Second)).as(bootstrap.IDDuplicate))
			continue
		}
		if n.ID == id || id == "" || !cluster.SameAddress(n.IP, address) || n.State == cluster.StateLeft {
			continue
		}
		if m.Agent.Fresh {
			found = append(found, bad("two machines have one address: give one of them another, with --address",
				"%s is registered under %s, too, and its agent sends heartbeats", n.ID, address))
		} else {
			found = append(found, warning("if that machine is gone: amsagent nodes prune",
				"%s is registered under %s, too, and its agent is silent", n.ID, address))
		}
	}
	fresh := 0
	for _, n := range look.AMS {
		if cluster.SameAddress(n.IP, address) && n.Fresh(time.Now()) {
			fresh++
		}
	}
	if fresh > 1 {
		found = append(found, warning("it passes within half a minute after a restart; if it stays, two servers have one address",
			"%d documents of Ant Media Server with %s are fresh", fresh, address))
	}
	if len(found) > 0 {
		return found
	}
	return one(good("no other node has %s", address))
}

func checkRole(_ context.Context, p *patient, look cluster.Look, in *bootstrap.Inspection) []Result {
	role := p.Join.Role
	if in.State != nil {
		role = in.State.Role
	}
	id, _ := ownNode(in)
	if id == "" {
		return one(unknown("which record is this machine's is not known"))
	}
	if text := bootstrap.LoneRole(role, id, look.Nodes); text != "" {
		return one(warning(bootstrap.RoleHint, "%s", text))
	}
	return one(good("%s", cmp.Or(role, "none")))
}

// checkUnequal compares what the agents report of the server's settings. A node that has what most have is as it should be.
func checkUnequal(_ context.Context, _ *patient, look cluster.Look, in *bootstrap.Inspection) []Result {
	id, _ := ownNode(in)
	var o cluster.Observer
	members := o.Observe(look)
	i := slices.IndexFunc(members, func(m cluster.Member) bool { return m.Node != nil && m.Node.ID == id })
	switch {
	case id == "":
		return one(unknown("which record is this machine's is not known"))
	case i < 0:
		return one(good("this machine is not a node"))
	case members[i].Node.Digest == "" || !members[i].Agent.Fresh:
		return one(unknown("this node's agent does not report its own: it is silent, or a file of the server is unreadable"))
	}
	text := "no active node of this role is known to have others"
	for _, d := range cluster.SettingsDifferences(members) {
		switch {
		case slices.Contains(d.Nodes, id):
			return one(warning("`amsagent status -o json` on two nodes: files.settings_digests shows which files differ", "%s", d))
		case d.Role == members[i].Node.Role:
			text = d.String()
		}
	}
	return one(good("%s", text))
}

// own is this node as the cluster knows it: as it joined, else as it would join.
func ownNode(in *bootstrap.Inspection) (id, address string) {
	if in.State != nil {
		return in.State.InstanceID, in.State.Address
	}
	if in.Address.Addr.IsValid() {
		address = in.Address.Addr.String()
	}
	return in.Instance.ID, address
}
