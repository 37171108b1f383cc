// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package web shows the cluster in a browser, as JSON and as text, and feeds Prometheus. It only reads.
package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	_ "embed" // the assets
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	g "maragu.dev/gomponents"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/bounded"
)

//go:embed page.css
var pageCSS string

//go:embed page.js
var pageJS string

const (
	maxStreams = 1000
	// maxPages bounds the pages in memory: each URL that was asked for is one.
	maxPages = 256
	// writeLimit bounds each write to a client.
	writeLimit = 10 * time.Second
	eventRows  = 100
	// eventsFor is how long events are kept: a read of them may take long.
	eventsFor = 5 * time.Second
)

// Options are the settings of [Serve].
type Options struct {
	Reader Reader
	// Hosts are the names, beside addresses and localhost, under which clients may ask.
	Hosts []string
	// MetricsPort is the port of the nodes' metrics, for /targets.
	MetricsPort int
	Log         *slog.Logger
	Now         func() time.Time
}

// Serve answers on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, o Options) error {
	w := newServer(o)
	var work sync.WaitGroup
	work.Go(func() { w.feed.run(ctx) })
	s := &http.Server{
		Handler: w.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: writeLimit, WriteTimeout: writeLimit, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, BaseContext: func(net.Listener) context.Context { return ctx },
	}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	limited := bounded.New(l, bounded.Logged(o.Log))
	limited.Max = 2*maxStreams + bounded.MaxConns // a page has a stream, and a connection to fetch itself
	err := s.Serve(limited)
	work.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

type server struct {
	o    Options
	feed *feed

	mu      sync.Mutex
	streams int
	pages   map[string]*page

	reading sync.Mutex // one read of events at a time
	past    map[string]past
}

// past are the last events of a node, or of all for "".
type past struct {
	board.Events
	at  time.Time
	err error // of the last read; the events are older then
}

// page is what one URL shows in one form, made once for each look.
type page struct {
	mu     sync.Mutex
	looked time.Time
	failed string
	answer
}

type answer struct {
	code int
	form string
	tag  string // of an HTML page's content
	gzip []byte
}

func newServer(o Options) *server {
	f := &feed{reader: o.Reader, log: o.Log, now: o.Now, changed: make(chan struct{})}
	return &server{o: o, feed: f, pages: map[string]*page{}, past: map[string]past{}}
}

func (w *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", w.show)
	mux.HandleFunc("GET /node/{id}", w.show)
	mux.HandleFunc("GET /events", w.show)
	mux.HandleFunc("GET /live", w.live)
	mux.HandleFunc("GET /targets", w.serveTargets)
	mux.HandleFunc("GET /metrics", w.serveMetrics)
	mux.HandleFunc("GET /icon.svg", serveIcon)
	mux.HandleFunc("GET /page.css", asset("text/css", pageCSS))
	mux.HandleFunc("GET /page.js", asset("text/javascript", pageJS))
	mux.HandleFunc("GET /healthz", asset("text/plain", "ok\n"))
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		head := rw.Header()
		head.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Referrer-Policy", "no-referrer")
		head.Set("Cross-Origin-Resource-Policy", "same-origin")
		head.Set("Cache-Control", "no-store")
		if !w.knows(r.Host) {
			http.Error(rw, "this host name is not served here: use the address, or start amsagent web with --host", http.StatusMisdirectedRequest)
			return
		}
		mux.ServeHTTP(rw, r)
	})
}

// knows refuses names that another site may have pointed at this address.
func (w *server) knows(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || strings.EqualFold(host, "localhost") || slices.ContainsFunc(w.o.Hosts, func(name string) bool { return strings.EqualFold(name, host) })
}

// What a URL is shown as. The last two are what the commands print.
const (
	asHTML = "text/html"
	asJSON = "application/json"
	asText = "text/plain"
)

func (w *server) show(rw http.ResponseWriter, r *http.Request) {
	form, accept := asText, r.Header.Get("Accept") // curl accepts everything
	for _, f := range []string{asHTML, asJSON} {
		if strings.Contains(accept, f) {
			form = f
			break
		}
	}
	is := w.page(r.Context(), form, r.URL)
	head := rw.Header()
	head.Set("Vary", "Accept, Accept-Encoding")
	head.Set("Content-Type", is.form+"; charset=utf-8")
	packed := strings.Contains(r.Header.Get("Accept-Encoding"), "gzip")
	if packed {
		head.Set("Content-Encoding", "gzip")
	}
	rw.WriteHeader(is.code)
	if packed {
		_, _ = rw.Write(is.gzip)
	} else if z, err := gzip.NewReader(bytes.NewReader(is.gzip)); err == nil {
		_, _ = io.Copy(rw, z)
	}
}

const noNode = "there is no such node"

// command is what a command prints about a URL's nodes or events. An error is text.
func (w *server) command(ctx context.Context, form string, s state, path string, q url.Values) answer {
	if s.read.IsZero() || s.failed != "" && form == asJSON { // a program takes the last look for that of now
		return refusal(http.StatusServiceUnavailable, "MongoDB cannot be read: "+s.failed)
	}
	t := &output.Text{Now: w.o.Now()}
	if s.failed != "" {
		t.Line("MongoDB cannot be read; this is the last look. %s", output.OneLine(s.failed))
	}
	var kind string
	var data any
	if path == "/events" {
		p := w.events(ctx, "")
		if p.err != nil {
			return refusal(http.StatusServiceUnavailable, p.err.Error())
		}
		kind, data = "events", p.Events
		board.WriteEvents(t, p.Events, s.look.Nodes)
	} else {
		members, query := s.members, queryOf(q)
		if id, isNode := strings.CutPrefix(path, "/node/"); isNode {
			m := s.find(id)
			if m == nil {
				return refusal(http.StatusNotFound, noNode)
			}
			members, query = []cluster.Member{*m}, board.Query{All: true}
		}
		nodes := board.New(query, s.look, members)
		kind, data = "nodes", nodes
		board.WriteNodes(t, nodes, board.Style{})
	}
	body := []byte(t.String())
	if form == asJSON {
		body, _ = output.Envelope(kind, data) // its types can be encoded
	}
	return answer{code: http.StatusOK, form: form, gzip: pack(body)}
}

func refusal(code int, why string) answer {
	return answer{code: code, form: asText, gzip: pack([]byte(why + "\n"))}
}

func pack(b []byte) []byte {
	var packed bytes.Buffer
	z, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	_, _ = z.Write(b) // a buffer takes all
	_ = z.Close()
	return packed.Bytes()
}

// page renders a URL once for each look and form.
func (w *server) page(ctx context.Context, form string, of *url.URL) answer {
	q := of.Query()
	maps.DeleteFunc(q, func(name string, _ []string) bool { return of.Path != "/" || !slices.Contains(queryNames(), name) })
	s, _ := w.feed.state()
	if id, isNode := strings.CutPrefix(of.Path, "/node/"); s.read.IsZero() || isNode && s.find(id) == nil {
		return w.render(ctx, form, s, of.Path, q) // it is short, and not kept
	}
	key := form + of.Path + "?" + q.Encode()
	w.mu.Lock()
	p := w.pages[key]
	if p == nil {
		if len(w.pages) >= maxPages {
			clear(w.pages)
		}
		p = &page{}
		w.pages[key] = p
	}
	w.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.code != 0 && p.looked.Equal(s.read) && p.failed == s.failed {
		return p.answer
	}
	p.looked, p.failed = s.read, s.failed
	p.answer = w.render(ctx, form, s, of.Path, q)
	return p.answer
}

func (w *server) render(ctx context.Context, form string, s state, path string, q url.Values) answer {
	if form != asHTML {
		return w.command(ctx, form, s, path, q)
	}
	v := viewOf(s)
	is := answer{code: http.StatusOK, form: form}
	var content g.Node
	id, isNode := strings.CutPrefix(path, "/node/")
	switch m := s.find(id); {
	case s.read.IsZero():
		is.code, content = http.StatusServiceUnavailable, v.content(path)
	case isNode && m == nil:
		is.code, content = http.StatusNotFound, v.content(path, el("section", at("id", "facts"), text(noNode)))
	case isNode:
		content = v.nodePage(board.Node{Member: *m}, w.events(ctx, id))
	case path == "/events":
		content = v.content(path, eventsTable(w.events(ctx, ""), s.look.Nodes))
	default:
		content = v.nodesPage(q)
	}
	var b bytes.Buffer
	_ = content.Render(&b) // a buffer takes all
	sum := sha256.Sum256(b.Bytes())
	is.tag = hex.EncodeToString(sum[:8])
	html := b.String()
	b.Reset()
	_ = v.document(is.tag, html).Render(&b)
	is.gzip = pack(b.Bytes())
	return is
}

// events reads at most every few seconds, for all readers: one that leaves does not end what the others wait for.
func (w *server) events(ctx context.Context, id string) past {
	w.reading.Lock()
	defer w.reading.Unlock()
	p := w.past[id]
	if !p.at.IsZero() && w.o.Now().Sub(p.at) < eventsFor {
		return p
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookLimit)
	defer cancel()
	q := cluster.EventQuery{Limit: eventRows}
	if id != "" {
		q.Nodes = []string{id}
	}
	events, err := w.o.Reader.Events(ctx, q)
	if p.at, p.err = w.o.Now(), err; err == nil {
		p.Events = board.Events{Nodes: q.Nodes, Events: events}
	}
	if len(w.past) >= maxPages {
		clear(w.past)
	}
	w.past[id] = p
	return p
}

// live sends, after each look, its time and the tag of what a page shows. The page asks for itself again if the tag is new.
func (w *server) live(rw http.ResponseWriter, r *http.Request) {
	of, err := url.Parse(r.URL.Query().Get("page"))
	if err != nil {
		http.Error(rw, "page: no URL", http.StatusBadRequest)
		return
	}
	w.mu.Lock()
	full := w.streams >= maxStreams
	if !full {
		w.streams++
	}
	w.mu.Unlock()
	if full {
		http.Error(rw, "too many open pages", http.StatusServiceUnavailable)
		return
	}
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.streams--
	}()
	rw.Header().Set("Content-Type", "text/event-stream")
	rw.Header().Set("X-Accel-Buffering", "no") // nginx would keep it
	control := http.NewResponseController(rw)
	_ = control.SetReadDeadline(time.Time{})
	for {
		s, changed := w.feed.state()
		is := w.page(r.Context(), asHTML, of)
		_ = control.SetWriteDeadline(time.Now().Add(writeLimit))
		if _, err := fmt.Fprintf(rw, "data: %s %s\n\n", is.tag, asOf(s)); err != nil || control.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
	}
}

// serveIcon draws a shape and a color for each tone.
func serveIcon(rw http.ResponseWriter, r *http.Request) {
	shape := map[string]string{
		"ok":   `<circle cx="8" cy="8" r="7" fill="#1a7f37"/>`,
		"warn": `<path d="M8 1 15 15H1Z" fill="#bf8700"/>`,
		"bad":  `<path d="M1 1h14v14H1Z" fill="#cf222e"/>`,
	}[r.URL.Query().Get("tone")]
	if shape == "" {
		shape = `<circle cx="8" cy="8" r="6" fill="none" stroke="#808080" stroke-width="3"/>`
	}
	rw.Header().Set("Content-Type", "image/svg+xml")
	_, _ = io.WriteString(rw, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">`+shape+`</svg>`)
}

func asset(kind, content string) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", kind+"; charset=utf-8")
		_, _ = io.WriteString(rw, content)
	}
}

func writeJSON(rw http.ResponseWriter, v any) {
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(v)
}
