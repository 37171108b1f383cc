// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/web"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lb"
	"github.com/amsagent/amsagent/lifecycle"
)

var update = flag.Bool("update", false, "rewrite docs/metrics.md")

var (
	metricHead = regexp.MustCompile(`(?m)^# HELP (\S+) (.*)\n# TYPE \S+ (\S+)\n((?:[^#\n].*\n)*)`)
	metricName = regexp.MustCompile(`[{,]([a-z_]+)="`)
)

// TestMetricsDoc compares docs/metrics.md, up to its first section, with the metrics of a daemon to which everything is known, and
// with those of balance and web.
func TestMetricsDoc(t *testing.T) {
	t.Parallel()
	var v View
	fill(reflect.ValueOf(&v).Elem())
	fill(reflect.ValueOf(&v.gpus).Elem())
	fill(reflect.ValueOf(&v.node).Elem())
	v.Missing, v.Phase, v.Lifecycle.State, v.clock = map[string]string{"x": "x"}, bootstrap.PhaseJoined, lifecycle.StateDraining, new(seconds.Duration)
	var page bytes.Buffer
	writeMetrics(&page, v)

	var doc strings.Builder
	doc.WriteString(`# Metrics

The daemon serves these at ` + "`/metrics`" + `, in the text format of Prometheus. An unknown value has no line: it is never reported as 0. Processors, memory,
disks and network are metrics of node_exporter, and the other figures of GPUs those of dcgm-exporter.

`)
	metricsTable(&doc, page.String())
	doc.WriteString("\n`amsagent balance --listen` serves these:\n\n")
	metricsTable(&doc, balanceMetrics(t))
	doc.WriteString("\n`amsagent web` serves these, of the whole cluster:\n\n")
	metricsTable(&doc, webMetrics(t))
	const file = "../../../docs/metrics.md"
	have, err := os.ReadFile(file)
	must.OK(t, err)
	tables, sections, _ := strings.Cut(string(have), "\n## ")
	if *update {
		must.OK(t, os.WriteFile(file, []byte(doc.String()+"\n## "+sections), 0o600))
	} else if tables != doc.String() {
		t.Error("docs/metrics.md does not have these tables (-update rewrites it)")
	}
	if n := strings.Count(doc.String(), "\n| `"); n < 15 {
		t.Errorf("only %d metrics:\n%s", n, page.String())
	}
}

// metricsTable writes the metrics of a page as a table.
func metricsTable(doc *strings.Builder, page string) {
	doc.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, m := range metricHead.FindAllStringSubmatch(page, -1) {
		var labels []string
		for _, l := range metricName.FindAllStringSubmatch(m[4], -1) {
			if l[1] != "le" && !slices.Contains(labels, l[1]) {
				labels = append(labels, l[1])
			}
		}
		fmt.Fprintf(doc, "| `%s` | %s | %s | %s |\n", m[1], m[3], strings.Join(labels, ", "), m[2])
	}
}

// balanceMetrics are those of a list whose only server is lost.
func balanceMetrics(t *testing.T) string {
	t.Helper()
	feed := lb.NewFeed(lb.Options{Looker: emptyCluster{}, Store: &eventStore{[]byte(`[{"id":"e1","role":"edge","address":"10.0.0.1","port":5080}]`)}, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	must.OK(t, feed.Look(t.Context()))
	return get(lb.Handler(feed), "/metrics").Body.String()
}

// webMetrics are those of a cluster with one node.
func webMetrics(t *testing.T) (page string) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must.OK(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- web.Serve(ctx, l, web.Options{Reader: oneNode{}, MetricsPort: 9771, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	}()
	must.Until(t, "web has read the cluster", func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/metrics", nil)
		must.OK(t, err)
		resp, err := http.DefaultClient.Do(req)
		must.OK(t, err)
		body, err := io.ReadAll(resp.Body)
		must.OK(t, err)
		must.OK(t, resp.Body.Close())
		page = string(body)
		return page != ""
	})
	cancel()
	must.OK(t, <-served)
	return page
}

type oneNode struct{}

func (oneNode) Look(context.Context) (cluster.Look, error) {
	now, n := time.Now(), 1
	beat := cluster.Heartbeat{Seq: 1, Load: &cluster.Load{Score: &n}, Sessions: &cluster.Sessions{Publishers: &n, Viewers: &n}}
	node := cluster.Node{ID: "e1", IP: "10.0.0.1", Role: "edge", State: cluster.StateActive, UpdatedAt: now, Heartbeat: beat}
	return cluster.Look{At: now, ServerTime: now, Nodes: []cluster.Node{node}, AMS: []cluster.AMSNode{{ID: "a", IP: node.IP, LastUpdate: now}}}, nil
}

func (oneNode) Events(context.Context, cluster.EventQuery) ([]cluster.PastEvent, error) {
	return nil, nil
}

type emptyCluster struct{}

func (emptyCluster) Look(context.Context) (cluster.Look, error) {
	return cluster.Look{At: time.Now()}, nil
}

// fill sets all that is exported to something that is not zero.
func fill(v reflect.Value) {
	if !v.CanSet() {
		return
	}
	if v.Type() == reflect.TypeFor[time.Time]() {
		v.Set(reflect.ValueOf(time.Unix(1, 0)))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	case reflect.Float64:
		v.SetFloat(1)
	default:
	}
}
