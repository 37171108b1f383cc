// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

const (
	webNodes   = 1000
	webPages   = 200
	webSeconds = 20
)

// BenchmarkWebRatio compares `web`, with 1,000 nodes that heartbeat and 200 open pages that follow them, with one `nodes --watch`
// beside it. In each second all pages change, and are fetched again.
func BenchmarkWebRatio(b *testing.B) {
	c, raw := connect(b, 64)
	docs := raw.Database("clusterdb").Collection("clusternode")
	for i := range webNodes {
		_, err := c.Register(b.Context(), webMember(i), cluster.RegisterOptions{})
		must.OK(b, err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	work.Go(func() { beatAll(ctx, c, docs) })
	addr, uri := freeUDP(b), c.Target().Raw().Reveal()
	web := start(b, exec.Command(buildAgent(b), "web", "--root", b.TempDir(), "--mongo", uri, "--listen", addr))
	watch := start(b, exec.Command(buildAgent(b), "nodes", "--root", b.TempDir(), "--mongo", uri, "--watch"))
	// Browsers keep their connections, and unpack pages by themselves.
	browsers := &http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 2 * webPages}}
	defer browsers.CloseIdleConnections()
	must.Until(b, "the page", func() bool {
		n, err := fetchPage(ctx, browsers, addr)
		return err == nil && n > 10_000
	})
	var fetched, bytes atomic.Int64
	for range webPages {
		work.Go(func() { follow(ctx, browsers, addr, &fetched, &bytes) })
	}
	must.Until(b, "each page was fetched", func() bool { return fetched.Load() > webPages })
	for b.Loop() {
		one, many, before := usage(b, watch), usage(b, web), fetched.Load()
		pause(b, webSeconds*time.Second)
		one2, many2 := usage(b, watch), usage(b, web)
		pages, alone := (many2.CPU - many.CPU).Seconds(), (one2.CPU - one.CPU).Seconds()
		b.Logf("%d nodes, %d open pages, %d s: web %.2f s CPU, nodes --watch %.2f s; %d pages fetched, %d kB each; load average %s",
			webNodes, webPages, webSeconds, pages, alone, fetched.Load()-before, bytes.Load()/max(1, fetched.Load())/1000, proc.LoadAverage())
		b.ReportMetric(100*pages/webSeconds, "%-of-a-core")
		b.ReportMetric(pages/alone, "x-nodes-watch")
		b.ReportMetric(float64(fetched.Load()-before)/webSeconds, "pages/s")
		b.ReportMetric(float64(many2.RSS)/(1<<20), "MiB-resident")
		b.ReportMetric(0, "ns/op")
	}
}

func webMember(i int) cluster.Node {
	n := member(i)
	n.Group, n.Zone, n.AMS, n.Agent = "edges", "eu-west-1"+string(rune('a'+i%3)), "2.17.1", "0.9.0"
	return n
}

// beatAll writes the nodes' heartbeats, and the servers' documents, until ctx ends.
func beatAll(ctx context.Context, c *cluster.Client, docs *mongo.Collection) {
	list := make([]any, webNodes)
	for i := range list {
		list[i] = bson.D{{Key: "_id", Value: fmt.Sprint("ams-", i)}, {Key: "ip", Value: member(i).IP}, {Key: "lastUpdateTime", Value: time.Now().UnixMilli()}}
	}
	_, _ = docs.InsertMany(ctx, list)
	tick := time.NewTicker(cluster.DefaultInterval / webNodes)
	defer tick.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		h := beat(int64(i/webNodes + 1))
		score := 50 + int(40*math.Sin(float64(i)/700))
		h.Load.Score, h.Load.CPU = &score, &score
		_ = c.Heartbeat(ctx, webMember(i%webNodes), h)
		if i%webNodes == 0 {
			_, _ = docs.UpdateMany(ctx, bson.D{}, bson.D{{Key: "$set", Value: bson.D{{Key: "lastUpdateTime", Value: time.Now().UnixMilli()}}}})
		}
		<-tick.C
	}
}

// follow does what the page's script does: it follows the stream, and fetches the page again if that has changed.
func follow(ctx context.Context, browsers *http.Client, addr string, fetched, bytes *atomic.Int64) {
	resp, err := ask(ctx, browsers, "http://"+addr+"/live?page=/")
	if err != nil {
		return
	}
	defer resp.Body.Close()
	lines, was := bufio.NewReader(resp.Body), ""
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		tag, _, _ := strings.Cut(strings.TrimPrefix(line, "data: "), " ")
		if strings.TrimSpace(tag) == "" || tag == was {
			continue
		}
		was = tag
		n, err := fetchPage(ctx, browsers, addr)
		if err != nil {
			return
		}
		fetched.Add(1)
		bytes.Add(n)
	}
}

func fetchPage(ctx context.Context, browsers *http.Client, addr string) (int64, error) {
	resp, err := ask(ctx, browsers, "http://"+addr+"/")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return io.Copy(io.Discard, resp.Body)
}

func ask(ctx context.Context, browsers *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/html")
	req.Header.Set("Accept-Encoding", "gzip")
	return browsers.Do(req)
}
