// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"net"
	"net/netip"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/cmd/amsagent/web"
)

type webOptions struct {
	listen      string
	behindProxy bool
	hosts       []string
	metricsPort int
}

func newWebCommand(g *globals) *cobra.Command {
	var opts webOptions
	cmd := &cobra.Command{
		Use:   "web [flags]",
		Short: "show the cluster in a browser, and to Prometheus",
		Long: "Serves pages of the nodes, of one node, and of the events. They follow the\n" +
			"cluster without a reload. Each URL answers in HTML, as JSON, or as text for\n" +
			"curl, as the client accepts it.\n\n" +
			"For Prometheus, /targets lists all nodes that have not left (http_sd_configs),\n" +
			"and /metrics has the figures of the cluster.\n\n" +
			"The pages only read, and need no login. So the address is of this machine, or a\n" +
			"proxy with a login stands before it (--behind-proxy).\n\n" +
			"It needs MongoDB only: no root, no AMS, no node.",
		Example: "  amsagent web --mongo 10.0.2.4\n" +
			"  ssh -L 9774:127.0.0.1:9774 HOST    # then open http://127.0.0.1:9774\n" +
			"  amsagent web --listen 0.0.0.0:9774 --behind-proxy --host ams.example.com",
		RunE: func(cmd *cobra.Command, _ []string) error { return runWeb(cmd.Context(), opts, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitInterrupted)
	fs := cmd.Flags()
	fs.StringVar(&opts.listen, "listen", "127.0.0.1:9774", "serve at `ADDRESS:PORT`")
	fs.BoolVar(&opts.behindProxy, "behind-proxy", false, "allow an address that other machines reach: a proxy there asks for a login")
	fs.StringSliceVar(&opts.hosts, "host", nil, "also answer requests for these host `NAMES`, such as the proxy's")
	fs.IntVar(&opts.metricsPort, "metrics-port", 9771, "the `PORT` of the nodes' metrics, for /targets")
	g.addSettings(cmd, settings.KeyMongo)
	return cmd
}

func (o *webOptions) check() error {
	address, err := settings.CheckListen(o.listen)
	if err != nil || o.listen == "off" {
		return usageError([]string{"such as 127.0.0.1:9774"}, "--listen: %q is no address to listen on", o.listen)
	}
	if addr, err := netip.ParseAddrPort(address); (err != nil || !addr.Addr().IsLoopback()) && !o.behindProxy {
		return usageError([]string{"for a proxy with a login before it: --behind-proxy"}, "--listen: other machines could read the page at %s without a login", o.listen)
	}
	if o.metricsPort < 1 || o.metricsPort > 65535 {
		return usageError(nil, "--metrics-port: %d is no port", o.metricsPort)
	}
	return nil
}

func runWeb(ctx context.Context, opts webOptions, g *globals) error {
	if err := opts.check(); err != nil {
		return err
	}
	return g.inCluster(ctx, "amsagent web", g.out.Log(), func(c *cluster.Client) error {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", opts.listen)
		if err != nil {
			return cannot("serve the page", err)
		}
		g.signals.expect()     // a signal is its usual end
		debug.SetGCPercent(50) // as the daemon
		g.out.Log().Info("serving the page", "url", "http://"+l.Addr().String())
		err = web.Serve(ctx, l, web.Options{Reader: c, Hosts: opts.hosts, MetricsPort: opts.metricsPort, Log: g.out.Log(), Now: g.env.Now})
		if err != nil {
			return cannot("serve the page", err)
		}
		return nil
	})
}
