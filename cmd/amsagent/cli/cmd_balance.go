// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/bounded"
	"github.com/amsagent/amsagent/lb"
)

type balanceOptions struct {
	roles, groups         []string
	name                  string
	dns, domain           string
	listen                string
	haproxy, haproxyState string
	stateDir              string
	once, dryRun, force   bool
}

func newBalanceCommand(g *globals) *cobra.Command {
	var opts balanceOptions
	cmd := &cobra.Command{
		Use:   "balance [flags]",
		Short: "feed load balancers with the nodes that serve",
		Long: "Reads the registry once a second and publishes the active nodes whose server\n" +
			"serves: by DNS for nginx, HAProxy and Caddy, by HTTP for Prometheus and\n" +
			"Traefik, or into a running HAProxy. A drain removes a node; its sessions\n" +
			"continue. Weights follow the load.\n\n" +
			"While MongoDB is away, the last list stays. A lost node stays in the list while\n" +
			"its port answers, and so does the last node of a role; --once then exits with\n" +
			"1 or 3. The list survives a restart. Several instances may run at the same\n" +
			"time.\n\n" +
			"It needs MongoDB only: no root, no AMS, no node.",
		Example: "  amsagent balance --mongo 10.0.2.4 --dns 127.0.0.1:5353 --domain ams.internal\n" +
			"  amsagent balance --haproxy /run/haproxy/admin.sock\n" +
			"  amsagent balance --once -o json",
		RunE: func(cmd *cobra.Command, _ []string) error { return runBalance(cmd.Context(), opts, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitInterrupted)
	fs := cmd.Flags()
	fs.StringSliceVar(&opts.roles, "role", nil, "only nodes of these `ROLES`: a comma list, or several times")
	fs.StringSliceVar(&opts.groups, "group", nil, "only nodes of these scaling `GROUPS`")
	fs.StringVar(&opts.dns, "dns", "", "answer DNS queries at `ADDRESS:PORT`, by UDP and TCP")
	fs.StringVar(&opts.domain, "domain", "", "with --dns: the `DOMAIN` of the names, as in _http._tcp.edge.DOMAIN")
	fs.StringVar(&opts.listen, "listen", "", "serve /nodes, /traefik, /metrics and /healthz at `ADDRESS:PORT`")
	fs.StringVar(&opts.haproxy, "haproxy", "", "set the servers of the HAProxy with this stats `SOCKET` (level admin)")
	fs.StringVar(&opts.haproxyState, "haproxy-state", "", "with --haproxy: store the state of the servers in `FILE` for its server-state-file")
	fs.StringVar(&opts.name, "name", "", "with --haproxy: the `NAME` under which the nodes see that it has acted (default: the host name)")
	fs.StringVar(&opts.stateDir, "state-dir", "", "keep the last list in `DIR` (default: $STATE_DIRECTORY, $XDG_STATE_HOME/amsagent, or ~/.local/state/amsagent)")
	fs.BoolVar(&opts.once, "once", false, "look once, act, and print the list")
	fs.BoolVar(&opts.dryRun, "dry-run", false, "print the list and the commands for HAProxy, and send nothing")
	fs.BoolVar(&opts.force, "force", false, "accept a list without lost nodes whose ports answer, or without any node of a role")
	g.addSettings(cmd, settings.KeyMongo)
	return cmd
}

func (o *balanceOptions) check() error {
	o.domain = strings.Trim(o.domain, ".")
	switch {
	case (o.dns == "") != (o.domain == ""):
		return usageError(nil, "--dns and --domain belong together")
	case o.haproxyState != "" && o.haproxy == "":
		return usageError(nil, "--haproxy-state is for --haproxy")
	case !o.once && !o.dryRun && o.dns == "" && o.listen == "" && o.haproxy == "":
		return usageError([]string{"amsagent balance --once shows what would be published"}, "no load balancer is given: add --dns, --listen or --haproxy")
	}
	for _, f := range []struct{ flag, value, example string }{{"--dns", o.dns, "127.0.0.1:5353"}, {"--listen", o.listen, "127.0.0.1:9773"}} {
		if f.value == "" {
			continue
		}
		if _, err := settings.CheckListen(f.value); err != nil || f.value == "off" {
			return usageError([]string{"such as " + f.example}, "%s: %q is no address to listen on", f.flag, f.value)
		}
	}
	if o.domain != "" && (len(o.domain) > maxDomain || !domainName.MatchString(o.domain)) {
		return usageError([]string{"such as ams.internal"}, "--domain: %q is no domain", o.domain)
	}
	if o.dns != "" && lb.Selects(o.roles, lb.NodeLabel) && len(o.roles) > 0 {
		return usageError([]string{"give these nodes another role"}, "--role: %s has no names in DNS, because the targets of SRV records are below that name", lb.NodeLabel)
	}
	return nil
}

// maxDomain leaves room for the longest name below a domain, that of a service of a role.
const maxDomain = 150

var domainName = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.|$))+$`)

func runBalance(ctx context.Context, opts balanceOptions, g *globals) error {
	if err := opts.check(); err != nil {
		return err
	}
	return g.inCluster(ctx, "amsagent balance", g.out.Log(), func(c *cluster.Client) error { return runBalancers(ctx, opts, g, c) })
}

func runBalancers(ctx context.Context, opts balanceOptions, g *globals, c *cluster.Client) error {
	feed := lb.NewFeed(lb.Options{
		Filter: lb.Filter{Roles: opts.roles, Groups: opts.groups}, Looker: c, Force: opts.force, Log: g.out.Log(), Now: g.env.Now,
		Store: stateFile{filepath.Join(opts.state(g.env), opts.stateName()), opts.dryRun},
	})
	h := &lb.HAProxy{Socket: opts.haproxy, Log: g.out.Log()}
	host, _ := os.Hostname() // "" is another name
	name := cluster.BalancerName(cmp.Or(opts.name, host, "haproxy"))
	h.Confirm = func(ctx context.Context, uses []string) error { return c.SetBalancer(ctx, name, uses) }
	if opts.haproxyState != "" {
		h.SaveState = stateFile{path: opts.haproxyState}.Save
	}
	if opts.once || opts.dryRun {
		return balanceOnce(ctx, opts, g, feed, h)
	}
	return balance(ctx, opts, g, feed, h)
}

// balanceData is what `balance --once` prints.
type balanceData struct {
	lb.List
	// Commands are those that --dry-run does not send to HAProxy.
	Commands []string `json:"commands,omitempty"`
}

func balanceOnce(ctx context.Context, opts balanceOptions, g *globals, feed *lb.Feed, h *lb.HAProxy) error {
	failed := feed.Look(ctx)
	list, _ := feed.List()
	data := balanceData{List: list}
	var err, held error
	switch {
	case opts.haproxy == "" || len(list.Servers) == 0:
	case opts.dryRun:
		data.Commands, err = h.Commands(ctx, list)
	default:
		err = h.Apply(ctx, list)
	}
	if len(list.Held) > 0 {
		held = errHeld
	}
	perr := g.result("balance", data, func(w *output.Text) { balanceText(w, data) })
	return cmp.Or(cannot("feed load balancers", cmp.Or(failed, err, held)), perr)
}

func balanceText(w *output.Text, data balanceData) {
	switch {
	case data.List.Servers == nil:
		w.Line("no list is known")
	case len(data.Servers) == 0:
		w.Line("no node serves")
	}
	if len(data.Servers) > 0 {
		w.Line("%-8s %-20s %-15s %5s  %s", "ROLE", "NODE", "ADDRESS", "PORT", "WEIGHT")
	}
	for _, s := range data.Servers {
		full := ""
		if s.Full {
			full = "  full"
		}
		w.Line("%-8s %-20s %-15s %5d  %6d%s", output.Printable(s.Role), output.Printable(s.ID), s.Addr, s.Port, s.Weight, full)
	}
	for _, held := range data.Held {
		w.Line("role %s keeps %s: %s", output.Printable(held.Role), output.Printable(strings.Join(held.IDs, ", ")), held.Why)
	}
	for _, c := range data.Commands {
		w.Line("%s", c)
	}
}

// balance runs until ctx ends or a listener fails.
func balance(ctx context.Context, opts balanceOptions, g *globals, feed *lb.Feed, h *lb.HAProxy) error {
	g.signals.expect() // a signal is its usual end
	signals := ctx
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	debug.SetGCPercent(50) // as the daemon
	var work sync.WaitGroup
	work.Go(func() { feed.Run(ctx) })
	if opts.haproxy != "" {
		work.Go(func() { h.Run(ctx, feed) })
	}
	serve := func(do func() error) {
		work.Go(func() {
			if err := do(); ctx.Err() == nil {
				stop(cannot("feed load balancers", err))
			}
		})
	}
	if opts.dns != "" {
		dns := &lb.DNS{Domain: opts.domain, Roles: opts.roles, Log: g.out.Log(), List: func() ([]lb.Server, bool) {
			list, _ := feed.List()
			return list.Servers, len(list.Servers) > 0
		}}
		serve(func() error {
			return dns.Serve(ctx, opts.dns, func(a net.Addr) {
				g.out.Log().Info("answering DNS queries", "address", a.String(), "domain", opts.domain)
			})
		})
	}
	if opts.listen != "" {
		var listen net.ListenConfig
		l, err := listen.Listen(ctx, "tcp", opts.listen)
		if err != nil {
			return cannot("feed load balancers", err)
		}
		g.out.Log().Info("serving the list by HTTP", "address", l.Addr().String())
		const limit = 5 * time.Second
		server := &http.Server{
			Handler: lb.Handler(feed), ReadHeaderTimeout: limit, ReadTimeout: limit, WriteTimeout: 2 * limit, IdleTimeout: time.Minute,
			MaxHeaderBytes: 4 << 10,
		}
		context.AfterFunc(ctx, func() { _ = server.Close() })
		serve(func() error {
			return server.Serve(bounded.New(l, bounded.Logged(g.out.Log())))
		})
	}
	work.Wait()
	if signals.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// state returns the folder of the last list.
func (o *balanceOptions) state(env Env) string {
	xdg := cmp.Or(env.getenv("XDG_STATE_HOME"), filepath.Join(env.getenv("HOME"), ".local/state"))
	return cmp.Or(o.stateDir, env.getenv("STATE_DIRECTORY"), filepath.Join(xdg, "amsagent"))
}

// stateName is the file of the last list. Runs for other nodes may share the folder.
func (o *balanceOptions) stateName() string {
	if len(o.roles)+len(o.groups) == 0 {
		return "servers.json"
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q", o.roles, o.groups))
	return fmt.Sprintf("servers-%x.json", sum[:6])
}

// stateFile is a file of this command's own user.
type stateFile struct {
	path string
	// keep writes nothing.
	keep bool
}

// Load returns nil if there is no file.
func (f stateFile) Load() ([]byte, error) {
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// Save replaces the file, or leaves it as it is.
func (f stateFile) Save(b []byte) error {
	if f.keep {
		return nil
	}
	path, err := filepath.Abs(f.path)
	if err != nil {
		return err
	}
	store := conf.Store{Root: "/"}
	return store.WriteFile(path, b, 0o644, 0o755)
}
