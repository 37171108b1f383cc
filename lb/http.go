// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Handler serves the list of a feed:
//
//	/nodes       the list as JSON
//	/prometheus  for http_sd_configs
//	/traefik     for the HTTP provider of Traefik
//	/metrics     figures of the feed
//	/healthz     200 while the process runs
//
// A response has an ETag, which changes with the list. metricsPort is the port of the agents' /metrics, for /prometheus.
func Handler(f *Feed, metricsPort int) http.Handler {
	mux := http.NewServeMux()
	get := func(path string, body func(List) any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			list, _ := f.List()
			switch {
			case list.Servers == nil:
				http.Error(w, "no list yet: "+list.Failed, http.StatusServiceUnavailable)
				return
			case path == "/traefik" && len(list.Servers) == 0:
				http.Error(w, "no servers", http.StatusServiceUnavailable)
				return
			}
			b, err := json.Marshal(body(list))
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			list.Read = time.Time{} // it changes with each look
			same, _ := json.Marshal(body(list))
			w.Header().Set("Content-Type", "application/json")
			respond(w, r, same, append(b, '\n'))
		})
	}
	get("/nodes", func(l List) any { return l })
	get("/prometheus", func(l List) any { return prometheus(l.Servers, metricsPort) })
	get("/traefik", func(l List) any { return traefik(l.Servers) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		list, _ := f.List()
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(metrics(list))
	})
	return mux
}

// respond sends 304 to a client that has this content.
func respond(w http.ResponseWriter, r *http.Request, content, body []byte) {
	sum := sha256.Sum256(content)
	tag := `W/"` + hex.EncodeToString(sum[:8]) + `"`
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(body)
}

type targets struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// prometheus returns one group for each server, whose labels differ.
func prometheus(servers []Server, port int) []targets {
	groups := []targets{}
	for _, s := range servers {
		labels := map[string]string{"node": s.ID, "role": s.Role}
		if s.Group != "" {
			labels["group"] = s.Group
		}
		groups = append(groups, targets{[]string{net.JoinHostPort(s.Addr.String(), strconv.Itoa(port))}, labels})
	}
	return groups
}

type traefikServer struct {
	URL    string `json:"url"`
	Weight int    `json:"weight"`
}

func traefik(servers []Server) map[string]any {
	services := map[string]any{}
	for _, role := range Roles(servers) {
		var list []traefikServer
		for _, s := range ofRole(servers, role) {
			list = append(list, traefikServer{"http://" + net.JoinHostPort(s.Addr.String(), strconv.Itoa(s.Port)), s.Weight})
		}
		services["ams-"+role] = map[string]any{"loadBalancer": map[string]any{"servers": list}}
	}
	return map[string]any{"http": map[string]any{"services": services}}
}

// metrics uses Prometheus's text format.
func metrics(l List) []byte {
	var b bytes.Buffer
	gauge := func(name, help string, samples func(sample func(role string, n int))) {
		fmt.Fprintf(&b, "# HELP amsagent_balance_%s %s\n# TYPE amsagent_balance_%s gauge\n", name, help, name)
		samples(func(role string, n int) {
			labels := ""
			if role != "" {
				labels = fmt.Sprintf("{role=%q}", role)
			}
			fmt.Fprintf(&b, "amsagent_balance_%s%s %d\n", name, labels, n)
		})
	}
	gauge("servers", "Servers in the list.", func(sample func(string, int)) {
		for _, role := range Roles(l.Servers) {
			sample(role, len(ofRole(l.Servers, role)))
		}
	})
	gauge("held_servers", "Servers that stay in the list although the cluster has lost them.", func(sample func(string, int)) {
		for _, h := range l.Held {
			sample(h.Role, len(h.IDs))
		}
	})
	gauge("last_look_timestamp_seconds", "When MongoDB was last read; without a line before the first time.", func(sample func(string, int)) {
		if !l.Read.IsZero() {
			sample("", int(l.Read.Unix()))
		}
	})
	return b.Bytes()
}
