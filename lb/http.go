// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/amsagent/amsagent/internal/promtext"
)

// Handler serves the list of a feed:
//
//	/nodes       the list as JSON
//	/traefik     for the HTTP provider of Traefik
//	/metrics     figures of the feed
//	/healthz     200 while the process runs
//
// A response has an ETag, which changes with the list.
func Handler(f *Feed) http.Handler {
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
	get("/traefik", func(l List) any { return traefik(l.Servers) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		list, _ := f.List()
		w.Header().Set("Content-Type", promtext.ContentType)
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

// metrics returns the feed's figures in Prometheus' text format.
func metrics(l List) []byte {
	page := new(promtext.Page)
	var servers, held []promtext.Series
	for _, role := range Roles(l.Servers) {
		stay := 0
		for _, h := range l.Held {
			if h.Role == role {
				stay = len(h.IDs)
			}
		}
		servers = append(servers, promtext.Of(new(float64(len(ofRole(l.Servers, role)))), "role", role))
		held = append(held, promtext.Of(new(float64(stay)), "role", role))
	}
	page.Family("gauge", "amsagent_balance_servers", "Servers in the list.", servers...)
	page.Family("gauge", "amsagent_balance_held_servers", "Servers that stay in the list although the cluster has lost them.", held...)
	page.Gauge("amsagent_balance_last_look_timestamp_seconds", "When MongoDB was last read; without a line before the first time.", promtext.Timestamp(l.Read))
	return page.Bytes()
}
