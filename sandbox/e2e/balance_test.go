// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realmongo"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// The ways to feed a load balancer, and the way that users had before: a script that writes nginx's servers and reloads it.
const (
	byAgentCheck = "agent-check"
	byDNS        = "dns"
	bySocket     = "socket"
	byNginx      = "nginx"
	byScript     = "script"
)

// fronts are the addresses of the load balancers.
var fronts = map[string]string{byAgentCheck: "127.0.0.11", byDNS: "127.0.0.12", bySocket: "127.0.0.13", byNginx: "127.0.0.14", byScript: "127.0.0.15"}

// otherDNS is where a second balance answers.
const otherDNS = "127.0.0.16"

// slowest is how long after the registry's write a way may send a new session to a node that drains.
var slowest = map[string]time.Duration{
	byAgentCheck: 1050 * time.Millisecond, // agent-inter and 50 ms
	byDNS:        2300 * time.Millisecond, // the TTL and 1.3 s
	byNginx:      2300 * time.Millisecond,
	bySocket:     1200 * time.Millisecond,
}

// slowestSeen is the same after both balance have taken the node from their lists.
var slowestSeen = map[string]time.Duration{byDNS: 1500 * time.Millisecond, bySocket: 100 * time.Millisecond}

// balancers are load balancers with the examples of packaging, and a balance that feeds them.
type balancers struct {
	t      *testing.T
	dir    string
	image  imageRoot
	mongo  string   // as --mongo
	prefix []string // of each command line, which enters a network
}

// newBalancers has none yet. withNginx, it has a tree of Debian's with nginx and HAProxy.
func newBalancers(t *testing.T, mongo string, withNginx bool) *balancers {
	t.Helper()
	b := &balancers{t: t, dir: rig.ShortDir(t), mongo: mongo}
	pair, err := os.ReadFile(realmongo.NewAuthority(t).Issue(pkix.Name{CommonName: "balancer"}, net.IPv4(127, 0, 0, 11)))
	must.OK(t, err)
	must.OK(t, os.WriteFile(b.state(), []byte("1\n"), 0o600))
	certified := []string{b.dir + "/certs/site.pem"}
	if withNginx {
		b.image = newImage(t, "NSPAWN_SUITE=testing", "NSPAWN_PACKAGES=haproxy,nginx,libnginx-mod-stream,openssl")
		etc := b.image.dir + "/etc/"
		certified = append(certified, etc+"haproxy/certs/site.pem", etc+"nginx/certs/cert.pem", etc+"nginx/certs/key.pem")
	}
	for _, file := range certified {
		must.OK(t, os.MkdirAll(filepath.Dir(file), 0o700))
		must.OK(t, os.WriteFile(file, pair, 0o600))
	}
	return b
}

// command runs a program until the test or the returned function ends it.
func (b *balancers) command(args ...string) (kill func()) {
	b.t.Helper()
	args = append(slices.Clone(b.prefix), args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + b.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var said locked.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	must.OK(b.t, cmd.Start())
	kill = sync.OnceFunc(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // with nginx's workers
		_ = cmd.Wait()
		if b.t.Failed() {
			b.t.Logf("%v:\n%s", args, said.String())
		}
	})
	b.t.Cleanup(kill)
	return kill
}

// state is where the state of HAProxy's servers is stored.
func (b *balancers) state() string { return filepath.Join(b.dir, "haproxy.state") }

// socket is HAProxy's.
func (b *balancers) socket(way string) string { return filepath.Join(b.dir, way+".sock") }

// haproxy runs HAProxy with an example, at another address, with other files, and with all servers of the fleet in a fixed list.
func (b *balancers) haproxy(way, example string) (kill func()) {
	b.t.Helper()
	given, err := os.ReadFile("../../packaging/examples/balancers/" + example)
	must.OK(b.t, err)
	text := strings.NewReplacer("bind :", "bind "+fronts[way]+":", "/etc/haproxy/certs/", b.dir+"/certs/", "/run/haproxy/admin.sock", b.socket(way),
		"/var/lib/amsagent-balance/", b.dir+"/", "127.0.0.1:5353", fronts[way]+":5353", "#nameserver other tcp@10.0.3.5", "nameserver other tcp@"+otherDNS,
		"maxconn 20000", "maxconn 4000" /* this process may not have as many files as a service */).Replace(string(given))
	text = regexp.MustCompile(`(?m)^ +server \w+2 .*\n`).ReplaceAllString(text, "")
	text = regexp.MustCompile(`(?m)^ +server (\w+)1 [0-9.]+:(\d+).*\n`).ReplaceAllStringFunc(text, func(line string) string {
		m := regexp.MustCompile(`server (\w+)1 [0-9.]+:(\d+)`).FindStringSubmatch(line)
		var all strings.Builder
		for n := 1; n <= 60; n++ {
			fmt.Fprintf(&all, "    server %s%d 127.0.1.%d:%s\n", m[1], n, n, m[2])
		}
		return all.String()
	})
	file := filepath.Join(b.dir, way+".cfg")
	must.OK(b.t, os.WriteFile(file, []byte(text), 0o600))
	return b.command(packageTool(b.t, "haproxy"), "-db", "-f", file)
}

// nginx runs nginx 1.27.3 or later of the image, or of the script.
func (b *balancers) nginx(way string, change func(string) string) {
	b.t.Helper()
	given, err := os.ReadFile("../../packaging/examples/balancers/nginx-dns.conf")
	must.OK(b.t, err)
	text := regexp.MustCompile(`listen (\d+)`).ReplaceAllString(string(given), "listen "+fronts[way]+":$1")
	text = strings.ReplaceAll(text, "127.0.0.1:5353", fronts[byDNS]+":5353") + "pid /run/" + way + ".pid;\nerror_log /var/log/" + way + ".log;\n"
	text = strings.Replace(text, "http {\n", "http {\n    access_log off;\n", 1)
	must.OK(b.t, os.WriteFile(b.image.dir+"/etc/nginx/"+way+".conf", []byte(change(text)), 0o600))
	b.command("chroot", b.image.dir, "nginx", "-c", "/etc/nginx/"+way+".conf", "-g", "daemon off;")
}

// balance runs the agent's command for DNS and for HAProxy's socket.
func (b *balancers) balance(name, dns string) (kill func()) {
	b.t.Helper()
	return b.command(bins.agent, "balance", "--mongo", b.mongo, "--state-dir", filepath.Join(b.dir, name), "--dns", dns+":5353", "--domain", "ams.internal", "--listen", dns+":8080",
		"--haproxy", b.socket(bySocket), "--haproxy-state", b.state(), "--name", name)
}

// balanceWorld has a fleet, a real mongod, and load balancers before the fleet.
type balanceWorld struct {
	*fleet
	*balancers
	t       *testing.T
	set     *realmongo.Set
	clients map[string]*clients
	served  map[string]bool // addresses that the script has found
	reloads int
}

func newBalanceWorld(t *testing.T, withNginx bool) *balanceWorld {
	t.Helper()
	set, err := realmongo.Start(t.Context(), realmongo.Options{Binary: realmongo.Require(t), Dir: t.TempDir()})
	must.OK(t, err)
	t.Cleanup(func() { _ = set.Close() })
	w := &balanceWorld{
		t: t, fleet: newFleet(t, set.URI()), balancers: newBalancers(t, set.URI(), withNginx), set: set, clients: map[string]*clients{}, served: map[string]bool{},
	}
	for way, front := range fronts {
		w.clients[way] = &clients{way: way, front: front, fleet: w.fleet}
	}
	return w
}

// script does what the vendor's does every ten seconds: it reads the servers' documents, writes what it has not seen, and reloads
// nginx. It removes nothing.
func (w *balanceWorld) script(ctx context.Context) {
	for ctx.Err() == nil {
		cursor, err := w.fleet.mongo.Database("clusterdb").Collection("clusternode").Find(ctx, bson.D{})
		var docs []struct {
			ID string `bson:"_id"`
			IP string `bson:"ip"`
		}
		if err == nil && cursor.All(ctx, &docs) == nil {
			more := false
			for _, d := range docs {
				role, _, _ := strings.Cut(d.ID, "-")
				more = more || !w.served[role+" "+d.IP]
				w.served[role+" "+d.IP] = true
			}
			if more {
				w.write()
				if exec.CommandContext(ctx, "chroot", w.image.dir, "nginx", "-c", "/etc/nginx/"+byScript+".conf", "-s", "reload").Run() == nil {
					w.reloads++
				}
			}
		}
		sleep(ctx, 10*time.Second)
	}
}

// write writes the upstreams of the script.
func (w *balanceWorld) write() {
	for name, port := range map[string]string{"http": "5080", "stream": "1935"} {
		var b strings.Builder
		for _, upstream := range [][2]string{{"origin", "origin"}, {"edge", "edge"}, {"panel", "origin"}, {"rtmp", "origin"}} {
			if (upstream[0] == "rtmp") != (name == "stream") {
				continue
			}
			fmt.Fprintf(&b, "upstream %s {\n  least_conn;\n  server 127.0.1.99:1 down;\n", upstream[0])
			for server := range w.served {
				if role, ip, _ := strings.Cut(server, " "); role == upstream[1] {
					fmt.Fprintf(&b, "  server %s:%s;\n", ip, port)
				}
			}
			b.WriteString("}\n")
		}
		must.OK(w.t, os.WriteFile(w.image.dir+"/etc/nginx/"+name+".servers", []byte(b.String()), 0o600))
	}
}

// serves waits until all ways serve both roles.
func (w *balanceWorld) serves(ways ...string) {
	w.t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, way := range ways {
		for _, port := range []string{"5080", "80"} {
			must.Until(w.t, way+" serves at "+port, func() bool {
				resp, err := client.Get("http://" + fronts[way] + ":" + port + "/" + way)
				if err != nil {
					return false
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
			})
		}
	}
}

// lasting are the figures of one drain: how long after its write, and after both lists were without the node, the last new session
// came.
type lasting struct {
	way         string
	after, seen time.Duration
	node        string
}

// seen waits until no list has a node.
func (w *balanceWorld) seen(ctx context.Context, n *fleetNode) time.Time {
	client := &http.Client{Timeout: time.Second}
	for _, at := range []string{fronts[byDNS], otherDNS} {
		for listed := true; listed && ctx.Err() == nil; sleep(ctx, 10*time.Millisecond) {
			resp, err := client.Get("http://" + at + ":8080/nodes")
			if err != nil {
				continue
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			listed = err != nil || strings.Contains(string(body), strconv.Quote(n.ID))
		}
	}
	return time.Now()
}

// TestBalance lets nodes join, drain, return and die before load balancers that are fed in each way, under load, and then lets
// both balance, MongoDB and HAProxy die. Beside them nginx is fed as users did before.
//
// The nodes are the test's own servers, which answer an agent check by package lb. Everything else is real. BALANCE_DRAINS is how
// many drain (`make prove-balance`: 100), BALANCE_RATE the requests a second of each way, BALANCE_DEAD how long balance is dead.
func TestBalance(t *testing.T) {
	drains, rate, dead := envInt("BALANCE_DRAINS", 8), envInt("BALANCE_RATE", 300), time.Duration(envInt("BALANCE_DEAD", 45))*time.Second
	w := newBalanceWorld(t, true)
	for range 8 {
		w.start("edge")
	}
	for range 4 {
		w.start("origin")
	}
	w.haproxy(byAgentCheck, "haproxy-agent-check.cfg")
	w.haproxy(byDNS, "haproxy-dns.cfg")
	killHAProxy := w.haproxy(bySocket, "haproxy-slots.cfg")
	balance := func() (kill func()) {
		one, two := w.balance("one", fronts[byDNS]), w.balance("two", otherDNS)
		return func() { one(); two() }
	}
	killBalance := balance()
	w.nginx(byNginx, func(s string) string { return s })
	w.write()
	w.nginx(byScript, func(s string) string {
		s = regexp.MustCompile(`(?ms)^    upstream \w+ \{.*?^    \}\n`).ReplaceAllString(s, "")
		s = regexp.MustCompile(`(?m)^(http|stream) \{\n`).ReplaceAllString(s, "$0    include /etc/nginx/$1.servers;\n")
		return s
	})
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	work.Go(func() { w.script(ctx) })
	ours := []string{byAgentCheck, byDNS, bySocket, byNginx}
	w.serves(append(slices.Clone(ours), byScript)...)
	for _, c := range w.clients {
		c.run(ctx, &work, rate, 200, 50)
	}
	sleep(ctx, 6*time.Second)

	begin := time.Now()
	latencies := w.events(ctx, drains)
	w.judge("joins, drains and kills", begin, drains >= 100, latencies)
	w.returned(ctx, ours)

	begin = time.Now()
	killBalance()
	sleep(ctx, dead)
	w.nothing(fmt.Sprintf("balance is dead for %s", dead), begin, ours)
	killBalance = balance()

	begin = time.Now()
	must.OK(t, w.set.Member(0).Kill())
	sleep(ctx, 10*time.Second)
	killBalance() // begins with its last list
	killBalance = balance()
	sleep(ctx, 10*time.Second)
	must.OK(t, w.set.Member(0).Start(ctx))
	sleep(ctx, 12*time.Second)
	w.nothing("MongoDB is dead for 20 s, and balance starts without it", begin, ours)

	// Each balancer sends on, because a node that is not ready, or full, may have the files of running streams.
	for what, set := range map[string]func(*fleetNode, bool){
		"no node is ready for 30 s":   func(n *fleetNode, is bool) { n.down.Store(is) },
		"all nodes are full for 30 s": func(n *fleetNode, is bool) { n.full.Store(is) },
	} {
		begin = time.Now()
		for _, n := range w.nodes("", true) {
			set(n, true)
		}
		sleep(ctx, 30*time.Second)
		for _, n := range w.nodes("", true) {
			set(n, false)
		}
		sleep(ctx, 5*time.Second)
		w.nothing(what, begin, ours)
	}

	stop()
	work.Wait()
	killBalance()
	killHAProxy()
	begin = time.Now()
	w.haproxy(bySocket, "haproxy-slots.cfg")
	w.serves(bySocket)
	figure(t, "balance is dead, and HAProxy was killed: it serves again %s after its start", time.Since(begin).Round(time.Millisecond))
}

// TestBalanceHungRequests: while no node is ready, requests that hang, as playlists do without MongoDB, end early at each HAProxy
// and keep no room from the files of running streams.
func TestBalanceHungRequests(t *testing.T) {
	w := newBalanceWorld(t, false)
	w.start("edge")
	w.start("origin")
	ways := map[string]string{byAgentCheck: "haproxy-agent-check.cfg", byDNS: "haproxy-dns.cfg", bySocket: "haproxy-slots.cfg"}
	for way, example := range ways {
		w.haproxy(way, example)
	}
	w.balance("one", fronts[byDNS])
	w.serves(slices.Collect(maps.Keys(ways))...)
	for _, n := range w.nodes("", true) {
		n.down.Store(true)
	}
	var work sync.WaitGroup
	for way := range ways {
		must.Until(t, way+": no edge is ready", func() bool { return w.isDown(way, "edge") && w.isDown(way, "origin") })
		work.Go(func() {
			begin := time.Now()
			client := &http.Client{Timeout: patience}
			resp, err := client.Get("http://" + fronts[way] + ":5080/hang")
			if err != nil {
				t.Errorf("%s: %v", way, err)
				return
			}
			_ = resp.Body.Close()
			// Otherwise `timeout server` of the defaults, one minute, would end it.
			if took := time.Since(begin); resp.StatusCode != http.StatusGatewayTimeout || took > 40*time.Second {
				t.Errorf("%s: a request that hangs: %s after %s", way, resp.Status, took)
			}
		})
	}
	w.serves(slices.Collect(maps.Keys(ways))...)
	work.Wait()
}

// isDown asks HAProxy's statistics whether no server of a backend is up.
func (b *balancers) isDown(way, backend string) bool {
	b.t.Helper()
	conn, err := net.Dial("unix", b.socket(way))
	must.OK(b.t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "show stat\n")
	must.OK(b.t, err)
	stat, err := io.ReadAll(conn)
	must.OK(b.t, err)
	return regexp.MustCompile(`(?m)^` + backend + `,BACKEND,.*,DOWN,`).Match(stat)
}

// events lets a node drain every two seconds. It leaves after 35 s, when the sessions of the clients have ended; each third returns
// instead. A new node takes its place. Each tenth event is the death of a node.
func (w *balanceWorld) events(ctx context.Context, drains int) (latencies []lasting) {
	w.t.Helper()
	var mu sync.Mutex
	var work sync.WaitGroup
	longest := time.Duration(0)
	for i := range drains {
		role := []string{"edge", "edge", "origin"}[i%3]
		nodes := w.nodes(role, false)
		n := nodes[i%len(nodes)]
		began, wrote, err := n.drain(ctx)
		must.OK(w.t, err)
		longest = max(longest, wrote.Sub(began))
		work.Go(func() {
			seen := w.seen(ctx, n)
			sleep(ctx, time.Until(wrote.Add(9*time.Second)))
			mu.Lock()
			for way := range fronts {
				if role == "edge" || way != byScript {
					since := wrote
					if way == byAgentCheck {
						since = began
					}
					latencies = append(latencies, lasting{way, n.taken(way, since), n.taken(way, seen), n.ID})
				}
			}
			mu.Unlock()
			if i%3 == 2 {
				_ = n.back(ctx)
				return
			}
			sleep(ctx, 26*time.Second)
			_ = n.leave(ctx)
		})
		if i%3 != 2 {
			w.start(role)
		}
		if i%10 == 9 {
			nodes := w.nodes("edge", false)
			nodes[0].stop(true)
			w.start("edge")
		}
		sleep(ctx, 2*time.Second)
	}
	work.Wait()
	figure(w.t, "the slowest write of a drain into the registry took %s", longest.Round(time.Millisecond))
	return latencies
}

// judge reports what the clients of each way met, and fails for the ways that are ours.
func (w *balanceWorld) judge(what string, begin time.Time, all bool, latencies []lasting) {
	w.t.Helper()
	for _, way := range []string{byAgentCheck, byDNS, bySocket, byNginx, byScript} {
		var after, seen []time.Duration
		for _, l := range latencies {
			if l.way == way {
				after, seen = append(after, l.after), append(seen, l.seen)
			}
		}
		slices.Sort(after)
		slices.Sort(seen)
		slices.SortFunc(latencies, func(a, b lasting) int { return cmp.Compare(b.after, a.after) })
		for _, l := range slices.DeleteFunc(slices.Clone(latencies), func(l lasting) bool { return l.way != way })[:3] {
			w.t.Logf("%s: last new session on %s %s after its drain", way, l.node, l.after.Round(time.Millisecond))
		}
		p99, p99Seen := after[(len(after)*99+99)/100-1], seen[(len(seen)*99+99)/100-1]
		cut := 0
		w.mu.Lock()
		for _, n := range w.all {
			n.mu.Lock()
			cut += n.cut[way]
			n.mu.Unlock()
		}
		w.mu.Unlock()
		c := w.clients[way]
		left, explained := c.unexplained(begin)
		figure(w.t, "%s, %s: last new session %s after the drain (median), %s (p99 of %d); %d requests, %d sessions, %d failed, %d more on killed nodes, %d sessions cut by the end of a drain",
			what, way, after[len(after)/2].Round(time.Millisecond), p99.Round(time.Millisecond), len(after), c.requests.Load(), c.sessions.Load(), len(left), explained, cut)
		if way == byScript {
			figure(w.t, "%s, %s: %d reloads", what, way, w.reloads)
			continue
		}
		if len(left) > 0 || cut > 0 {
			w.t.Errorf("%s, %s: %d failures such as %v, %d sessions cut", what, way, len(left), left[:min(3, len(left))], cut)
		}
		if most := slowestSeen[way]; most > 0 {
			figure(w.t, "%s, %s: last new session %s after both balance had seen the drain (p99)", what, way, p99Seen.Round(time.Millisecond))
			if all && p99Seen > most {
				w.t.Errorf("%s: the last new session %s after the lists, want at most %s", way, p99Seen, most)
			}
		}
		if all && p99 > slowest[way] {
			w.t.Errorf("%s: the last new session %s after the drain, want at most %s", way, p99, slowest[way])
		}
	}
}

// nothing fails if the clients of a way met a failure.
func (w *balanceWorld) nothing(what string, begin time.Time, ways []string) {
	w.t.Helper()
	for _, way := range ways {
		left, _ := w.clients[way].unexplained(begin)
		figure(w.t, "%s, %s: %d failures", what, way, len(left))
		if len(left) > 0 {
			w.t.Errorf("%s, %s: %v", what, way, left[:min(3, len(left))])
		}
	}
}

// returned lets a node drain and return, and reports its share of the requests and sessions of its first minute.
func (w *balanceWorld) returned(ctx context.Context, ways []string) {
	w.t.Helper()
	nodes := w.nodes("edge", false)
	n := nodes[0]
	_, _, err := n.drain(ctx)
	must.OK(w.t, err)
	sleep(ctx, 32*time.Second)
	must.OK(w.t, n.back(ctx))
	counts := func() map[string][2]int {
		found := map[string][2]int{}
		for _, m := range nodes {
			m.mu.Lock()
			for way, c := range m.count {
				both := found[way]
				if both[1] += c; m == n {
					both[0] = c
				}
				found[way] = both
			}
			m.mu.Unlock()
		}
		return found
	}
	before := counts()
	sleep(ctx, time.Minute)
	after := counts()
	for _, way := range ways {
		share := float64(after[way][0]-before[way][0]) / float64(after[way][1]-before[way][1]) * float64(len(nodes))
		figure(w.t, "%s: a node that returned got %.2f of its fair share in its first minute", way, share)
		if share > 1.5 {
			w.t.Errorf("%s: a node that returned got %.2f of its fair share", way, share)
		}
	}
}

func envInt(name string, otherwise int) int {
	n, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		return otherwise
	}
	return n
}
