// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

// Bounds for the work of a cloud's metadata.
const (
	mostIdentity = 50.0 // ms, from nothing to a known instance
	mostPolling  = 0.1  // % of a core
)

// serviceWait is what a healthy metadata service takes for an answer.
const serviceWait = time.Millisecond

// firmware is what shows each cloud.
func firmware(cloud string) (name, value string) {
	switch cloud {
	case metadata.AWS:
		return "board_asset_tag", "i-0abc1234567890def"
	case metadata.Azure:
		return "chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"
	case metadata.Alibaba:
		return "product_name", "Alibaba Cloud ECS"
	default:
		return "product_name", "Google Compute Engine"
	}
}

// counter stands before a metadata service, takes a while for each answer, and counts.
type counter struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string]int
}

func count(b *testing.B, origin string, wait time.Duration) *counter {
	b.Helper()
	to, err := url.Parse(origin)
	must.OK(b, err)
	// Rewrite and not Director: no service of a cloud answers what was forwarded.
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host // a signature may be over it
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 16},
		// Who held a poll and has gone is no news.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	c := &counter{seen: map[string]int{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.seen[r.Method+" "+r.URL.RequestURI()]++
		c.mu.Unlock()
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
			proxy.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}))
	b.Cleanup(func() {
		c.CloseClientConnections()
		c.Close()
	})
	return c
}

func (c *counter) take() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.seen
	c.seen = map[string]int{}
	return out
}

// endpoint is the setting that says where a cloud's metadata are.
func endpoint(cloud string) string { return "AMSAGENT_" + strings.ToUpper(cloud) + "_ENDPOINT" }

// onCloud starts a cloud with one edge in it, and returns how its metadata are found, and the settings for all its services,
// each through a counter of its own.
func onCloud(b *testing.B, name string, wait time.Duration) (opts metadata.Options, environ []string, counters []*counter) {
	b.Helper()
	ctx := b.Context()
	c, err := fakecloud.Open(ctx, name, fakecloud.Options{})
	must.OK(b, err)
	b.Cleanup(func() { _ = c.Close() })
	meta, err := c.Machine(ctx, fakecloud.Machine{Name: "edge-1", ID: fakecloud.ID(name, 1), Address: "10.0.2.12", Role: "edge", MAC: "0e:49:61:0f:c3:12"})
	must.OK(b, err)
	b.Cleanup(func() { _ = meta.Close() })
	opts.Endpoints = map[string]string{}
	for _, e := range meta.Environ {
		key, origin, _ := strings.Cut(e, "=")
		c := count(b, origin, wait)
		counters, environ = append(counters, c), append(environ, key+"="+c.URL)
		switch key {
		case endpoint(name):
			opts.Endpoints[name] = c.URL
		case "AMSAGENT_ALIBABA_ECS_ENDPOINT":
			opts.Endpoints[alibaba.EndpointECS] = c.URL // has the tags
		}
	}
	if opts.Endpoints[name] == "" {
		b.Fatalf("%s has no address of its metadata service: %q", name, meta.Environ)
	}
	root := b.TempDir()
	file, value := firmware(name)
	path := filepath.Join(root, "sys/class/dmi/id", file)
	must.OK(b, errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(value+"\n"), 0o600)))
	opts.Root = root
	return opts, environ, counters
}

// taken is what the counters have seen since they were asked last.
func taken(list []*counter) map[string]int {
	all := map[string]int{}
	for i, c := range list {
		for what, n := range c.take() {
			all[fmt.Sprintf("%s (service %d)", what, i+1)] = n
		}
	}
	return all
}

// BenchmarkCloudIdentity is from nothing to a known instance, on a service that takes a millisecond for each answer: which
// cloud it is, and all that it says of this machine. The bound is 50 ms, and that nothing is asked for twice.
func BenchmarkCloudIdentity(b *testing.B) {
	for _, name := range fakecloud.Names() {
		b.Run(name, func(b *testing.B) {
			opts, _, seen := onCloud(b, name, serviceWait)
			var took []time.Duration
			requests, twice := 0, 0
			for b.Loop() {
				began := time.Now()
				d, err := metadata.Detect(opts)
				must.OK(b, err)
				p, err := metadata.Open(d.Provider, opts)
				must.OK(b, err)
				inst, err := p.Instance(b.Context())
				took = append(took, time.Since(began))
				if role := cmp.Or(inst.Tags["amsagent:role"], inst.Tags["amsagent-role"]); err != nil || d.Provider != name || inst.ID != fakecloud.ID(name, 1) || role != "edge" {
					b.Fatalf("detected %s, instance %+v, %v", d.Provider, inst, err)
				}
				<-time.After(time.Second / 4) // Azure takes five requests a second
				asked := taken(seen)
				for what, n := range asked {
					requests += n
					if n > 1 {
						twice++
						b.Errorf("%s was asked %d times", what, n)
					}
				}
			}
			n := float64(len(took))
			median, slow := ms(quantile(took, 0.5)), ms(quantile(took, 0.99))
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median, "ms")
			b.ReportMetric(slow, "ms-p99")
			b.ReportMetric(median/mostIdentity, "of-50ms")
			b.ReportMetric(float64(requests)/n, "requests")
			b.ReportMetric(float64(twice)/n, "asked-twice")
		})
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Environment variables for the polling child.
const (
	pollCloud   = "AMSAGENT_BENCH_POLL"
	pollSeconds = "AMSAGENT_BENCH_POLL_SECONDS"
)

// polled is what the child prints.
type polled struct {
	CPU, Wall time.Duration
	Reports   int64
}

// BenchmarkCloudPolling measures the CPU time of the daemon's polling for a cloud's signals: its loops, at the default intervals,
// in a child process, for BENCH_CLOUD_SECONDS (60) after a warm-up. Figures per minute are scaled. The bound is 0.1 % of a core.
func BenchmarkCloudPolling(b *testing.B) {
	seconds := setting(b, "BENCH_CLOUD_SECONDS", 60)
	for _, name := range fakecloud.Names() {
		b.Run(name, func(b *testing.B) {
			_, environ, seen := onCloud(b, name, serviceWait)
			var got polled
			for b.Loop() {
				cmd := exec.CommandContext(b.Context(), os.Args[0], "-test.run=^TestCloudPollingChild$", "-test.v")
				cmd.Env = append(append(os.Environ(), environ...), pollCloud+"="+name, fmt.Sprintf("%s=%g", pollSeconds, seconds))
				out, err := cmd.CombinedOutput()
				_, text, ok := strings.Cut(string(out), "POLLED ")
				text, _, _ = strings.Cut(text, "\n")
				if err = errors.Join(err, json.Unmarshal([]byte(text), &got)); err != nil || !ok {
					b.Fatalf("%v\n%s", err, out)
				}
			}
			requests := 0
			for _, n := range taken(seen) {
				requests += n
			}
			percent := 100 * got.CPU.Seconds() / got.Wall.Seconds()
			whole := got.Wall + pollWarmUp
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(percent, "%-of-a-core")
			b.ReportMetric(percent/mostPolling, "of-0.1%")
			b.ReportMetric(1000*got.CPU.Seconds()/got.Wall.Minutes(), "cpu-ms/min")
			b.ReportMetric(float64(requests)/float64(max(1, b.N))/whole.Minutes(), "requests/min")
			b.Logf("%s: %v of CPU in %v, %d reports; load average %s", name, got.CPU, got.Wall.Round(time.Millisecond), got.Reports, proc.LoadAverage())
		})
	}
}

// pollWarmUp is left out: opening connections and the first answers are not what a minute costs.
const pollWarmUp = 5 * time.Second

// TestCloudPollingChild is not a test: it is the process that BenchmarkCloudPolling looks at.
func TestCloudPollingChild(t *testing.T) {
	name := os.Getenv(pollCloud)
	if name == "" {
		t.Skip("for BenchmarkCloudPolling")
	}
	length, err := time.ParseDuration(os.Getenv(pollSeconds) + "s")
	must.OK(t, err)
	provider, err := metadata.Open(name, metadata.Options{Endpoints: map[string]string{
		name: os.Getenv(endpoint(name)), alibaba.EndpointECS: os.Getenv("AMSAGENT_ALIBABA_ECS_ENDPOINT"),
		alibaba.EndpointESS: os.Getenv("AMSAGENT_ALIBABA_ESS_ENDPOINT"),
	}})
	must.OK(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got polled
	ended := make(chan struct{})
	var reports atomic.Int64
	go func() {
		defer close(ended)
		provider.Watch(ctx, func(string, []cloud.Notice) { reports.Add(1) })
	}()
	wait := func(d time.Duration) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ended:
			t.Fatal("the looking ended")
		}
	}
	wait(pollWarmUp)
	before, err := proc.ReadUsage(os.Getpid())
	must.OK(t, err)
	began := time.Now()
	wait(length)
	after, err := proc.ReadUsage(os.Getpid())
	must.OK(t, err)
	got.CPU, got.Wall = after.CPU-before.CPU, time.Since(began)
	cancel()
	<-ended
	got.Reports = reports.Load()
	out, err := json.Marshal(got)
	must.OK(t, err)
	fmt.Printf("POLLED %s\n", out)
}
