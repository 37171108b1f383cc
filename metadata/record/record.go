// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// DetectionFile is the name of the file that holds the strings the cloud was detected by.
const DetectionFile = "detection.json"

// schemaVersion of the files.
const schemaVersion = 1

// Exchange is one request and its answer, as written to a file.
type Exchange struct {
	SchemaVersion int      `json:"schema_version"`
	Request       Request  `json:"request"`
	Response      Response `json:"response"`
}

// Request is what was asked.
type Request struct {
	Method string            `json:"method"`
	Path   string            `json:"path"`
	Header map[string]string `json:"header,omitempty"`
}

// Response is what came back.
type Response struct {
	Status int               `json:"status,omitempty"`
	Header map[string]string `json:"header,omitempty"`
	Body   string            `json:"body,omitempty"`
	// Error says in a word why there was no answer: timeout, refused, cut.
	Error string `json:"error,omitempty"`
	// Note says what was done to the body.
	Note string `json:"note,omitempty"`
}

// Policy says what may be written of a provider's exchanges. Both functions get one Mapper per recording.
type Policy interface {
	// Path returns the path as it may be written.
	Path(m *Mapper, path string) string
	// Body returns the body of a good answer as it may be written; a path that the policy does not know gives Redacted.
	Body(m *Mapper, path string, body []byte) string
}

// WriteError is a recording that could not be written. It ends the reading: who asked for a recording wants to know.
type WriteError struct{ Err error }

// Error implements error.
func (e *WriteError) Error() string { return fmt.Sprintf("writing the recording: %v", e.Err) }

// Unwrap gives the cause.
func (e *WriteError) Unwrap() error { return e.Err }

// Prepare makes the folder of a recording. A folder that holds anything but the detection's file is refused: two
// recordings in one would be one machine that never was.
func Prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the folder of the recording: %w", err)
	}
	root, err := open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return fmt.Errorf("looking into the folder of the recording: %w", err)
	}
	for _, e := range entries {
		if e.Name() != DetectionFile {
			return fmt.Errorf("the folder of the recording, %s, is not empty: it holds %s", dir, e.Name())
		}
	}
	return nil
}

// WriteFile writes one value of a recording as indented JSON, readable by its owner only: redacted is not public.
func WriteFile(dir, name string, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	root, err := open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return root.WriteFile(name, b.Bytes(), 0o600)
}

// open opens the folder of a recording. In one that somebody else may write to, a link with the name of one of our files
// would have root write over what it leads to.
func open(dir string) (*os.Root, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of the recording: %w", err)
	}
	info, err := root.Stat(".")
	if err == nil {
		st, ok := info.Sys().(*syscall.Stat_t)
		mode := info.Mode().Perm()
		if ok && int(st.Uid) == os.Geteuid() && mode&0o002 == 0 && (mode&0o020 == 0 || int(st.Gid) == os.Getegid()) {
			return root, nil
		}
		err = errors.New("somebody else may write to it; name a folder that is not there yet")
	}
	_ = root.Close()
	return nil, fmt.Errorf("the folder of the recording, %s: %w", dir, err)
}

// Transport is an http.RoundTripper that writes down what passes through it.
type Transport struct {
	next   http.RoundTripper
	dir    string
	policy Policy
	mapper *Mapper

	mu    sync.Mutex
	times map[string]int
}

// NewTransport records into dir, which Prepare made, what goes through next.
func NewTransport(dir string, next http.RoundTripper, p Policy) *Transport {
	return &Transport{next: next, dir: dir, policy: p, mapper: NewMapper(), times: map[string]int{}}
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ex := Exchange{SchemaVersion: schemaVersion, Request: Request{
		Method: req.Method,
		Path:   t.policy.Path(t.mapper, req.URL.RequestURI()),
		Header: requestHeader(req.Header),
	}}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		ex.Response.Error = word(err)
		return nil, errors.Join(err, t.write(ex))
	}
	body, readErr := io.ReadAll(io.LimitReader(resp.Body, 2<<20))
	resp.Body.Close()
	ex.Response.Status = resp.StatusCode
	ex.Response.Header = responseHeader(resp.Header)
	switch {
	case readErr != nil:
		ex.Response.Error = word(readErr)
	case resp.StatusCode >= 300:
		// Error pages come from anyone, proxies too, and no provider reads them.
		ex.Response.Note = fmt.Sprintf("body of %d bytes left out", len(body))
	default:
		ex.Response.Body = t.policy.Body(t.mapper, req.URL.Path, body)
	}
	if err := t.write(ex); err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), &failing{readErr}))
	return resp, nil
}

func (t *Transport) write(ex Exchange) error {
	name := FileName(ex.Request.Method, ex.Request.Path)
	t.mu.Lock()
	t.times[name]++
	n := t.times[name]
	t.mu.Unlock()
	if n > 1 {
		name = fmt.Sprintf("%s.%d", name, n)
	}
	if err := WriteFile(t.dir, name+".json", ex); err != nil {
		return &WriteError{err}
	}
	return nil
}

// failing gives the error that ended the reading of a body, where one did.
type failing struct{ err error }

// Read implements io.Reader.
func (f *failing) Read([]byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return 0, io.EOF
}

// FileName makes a name, without its ending, out of a method and a path, different ones for different paths.
func FileName(method, path string) string {
	var b strings.Builder
	b.WriteString(method)
	for _, c := range []byte(path) {
		switch {
		case c == '/':
			b.WriteByte('_')
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	name := b.String()
	// File systems stop at 255 bytes, and an ending still comes.
	if len(name) > 200 {
		sum := sha256.Sum256([]byte(name))
		name = name[:180] + "-" + hex.EncodeToString(sum[:8])
	}
	return name
}

// The headers that are kept. All others, Server and Date among them, tell about the machine or the day and not about the
// protocol.
func requestHeader(h http.Header) map[string]string {
	out := map[string]string{}
	for _, k := range []string{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds", "Metadata", "Metadata-Flavor"} {
		if v := h.Get(k); v != "" {
			out[k] = v
		}
	}
	for _, k := range []string{"X-Aws-Ec2-Metadata-Token", "X-Aliyun-Ecs-Metadata-Token"} {
		if h.Get(k) != "" {
			out[k] = Redacted
		}
	}
	return out
}

func responseHeader(h http.Header) map[string]string {
	out := map[string]string{}
	for _, k := range []string{"Content-Type", "X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds", "Metadata-Flavor", "Retry-After"} {
		if v := h.Get(k); v != "" {
			out[k] = v
		}
	}
	return out
}

func word(err error) string {
	var ne net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "cancelled"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "cut"
	default:
		return "refused"
	}
}

// Load reads the exchanges of a recording, in the order of their file names.
func Load(fsys fs.FS) ([]Exchange, error) {
	names, err := fs.Glob(fsys, "*.json")
	if err != nil {
		return nil, fmt.Errorf("listing the recording: %w", err)
	}
	// "x.json" before "x.2.json", which plain order would turn round.
	slices.SortStableFunc(names, func(a, b string) int {
		return strings.Compare(strings.TrimSuffix(a, ".json"), strings.TrimSuffix(b, ".json"))
	})
	var out []Exchange
	for _, name := range names {
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("reading the recording: %w", err)
		}
		var ex Exchange
		if err := json.Unmarshal(b, &ex); err != nil {
			return nil, fmt.Errorf("reading the recording: %s: %w", name, err)
		}
		if ex.Request.Method == "" {
			// The detection's file, or a provider's own.
			continue
		}
		if ex.SchemaVersion != schemaVersion {
			return nil, fmt.Errorf("reading the recording: %s: version %d of the format is not known here", name, ex.SchemaVersion)
		}
		out = append(out, ex)
	}
	if len(out) == 0 {
		return nil, errors.New("reading the recording: no exchange in it")
	}
	return out, nil
}

// Replay is an http.RoundTripper that answers from a recording and never from the network. What was asked several times
// is answered in the recorded order, the last answer for good; what was not recorded is a 404.
type Replay struct {
	mu    sync.Mutex
	byKey map[string][]Exchange
	asked map[string]int
}

// NewReplay returns the transport that plays the exchanges.
func NewReplay(exchanges []Exchange) *Replay {
	r := &Replay{byKey: map[string][]Exchange{}, asked: map[string]int{}}
	for _, ex := range exchanges {
		key := ex.Request.Method + " " + ex.Request.Path
		r.byKey[key] = append(r.byKey[key], ex)
	}
	return r
}

// RoundTrip implements http.RoundTripper.
func (r *Replay) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	key := req.Method + " " + req.URL.RequestURI()
	r.mu.Lock()
	list, n := r.byKey[key], r.asked[key]
	r.asked[key]++
	r.mu.Unlock()
	out := Response{Status: http.StatusNotFound}
	if len(list) > 0 {
		out = list[min(n, len(list)-1)].Response
	}
	if out.Status == 0 {
		return nil, fmt.Errorf("replayed: %s", out.Error)
	}
	h := http.Header{}
	for k, v := range out.Header {
		h.Set(k, v)
	}
	body := io.Reader(strings.NewReader(out.Body))
	if out.Error != "" {
		body = io.MultiReader(body, &failing{io.ErrUnexpectedEOF})
	}
	return &http.Response{
		Status: http.StatusText(out.Status), StatusCode: out.Status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: io.NopCloser(body), ContentLength: -1, Request: req,
	}, nil
}

// Asked returns what was asked and how often, as "METHOD path".
func (r *Replay) Asked() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]int, len(r.asked))
	for k, v := range r.asked {
		out[k] = v
	}
	return out
}
