// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/conf"
)

// Ports are those that the server listens on by its configuration; 0 is off.
type Ports struct {
	HTTP   int `json:"http"`
	HTTPS  int `json:"https"` // listened on once a certificate was set up
	RTMP   int `json:"rtmp"`
	RTMPS  int `json:"rtmps"`
	SRT    int `json:"srt"`    // UDP
	Origin int `json:"origin"` // from node to node
}

// Viewers are the ports on which viewers arrive: players of HLS and DASH, and the
// websockets of WebRTC. RTMP is not among them, for nearly all that comes there
// publishes, and AMS's own statistics count no viewers of RTMP either.
func (p Ports) Viewers() []int { return []int{p.HTTP, p.HTTPS} }

// defaultPorts are AMS's own where red5.properties says nothing.
func defaultPorts() Ports {
	return Ports{HTTP: DefaultHTTPPort, HTTPS: 5443, RTMP: 1935, SRT: 4200, Origin: DefaultOriginPort}
}

const defaultRTMPSPort = 8443

// Ports reads the ports from red5.properties as it is now. A running server has
// those of its start. What is missing or no port is AMS's default; with an error
// all of them are.
func (in *Installation) Ports() (Ports, error) {
	ports := defaultPorts()
	p, err := in.serverProperties()
	if err != nil {
		return ports, err
	}
	set := func(key string, to *int) {
		if n, ok := springValue(p, key).port(); ok {
			*to = n
		}
	}
	set("http.port", &ports.HTTP)
	set("https.port", &ports.HTTPS)
	set("rtmp.port", &ports.RTMP)
	set("server.srt_port", &ports.SRT)
	set("server.origin_port", &ports.Origin)
	if springTrue(springValue(p, "rtmps.enabled").text) {
		ports.RTMPS = defaultRTMPSPort
		set("rtmps.port", &ports.RTMPS)
	}
	return ports, nil
}

// Databases are the databases of the applications, sorted, without the console's,
// which has no streams. The error names the applications whose database is not
// known: whoever counts in the others has not counted all.
func (in *Installation) Databases() ([]string, error) {
	names := []string{}
	var errs []error
	for _, a := range in.Apps {
		switch {
		case a.Console():
		case a.Err != nil:
			errs = append(errs, a.Err)
		case a.DBName == "":
			errs = append(errs, fmt.Errorf("%q has no db.name", shown(in.Root, a.File.Path)))
		default:
			names = append(names, a.DBName)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), errors.Join(errs...)
}

// ErrNoServerToken says that this server takes no token that could be made here.
// The error that wraps it says why.
var ErrNoServerToken = errors.New("no token for the server's statistics can be made")

// ServerKey makes tokens for the server's REST calls. The secret is nowhere that
// fmt, a log or JSON could find it.
type ServerKey struct {
	sign func(text string) []byte
}

// String says nothing.
func (ServerKey) String() string { return "***" }

// tokenLife is how long a token is good. The server asks for no claim at all, and
// without one a token that leaked would open its whole management interface for
// ever. Both clocks are one machine's, and a token is made for one call.
const tokenLife = time.Minute

// ServerKey reads from red5.properties, as it is now, how to sign a token. The
// error is ErrNoServerToken where the server is configured to take none of ours.
// A running server knows what the file said at its start.
//
// The server prefers a JWKS URL to the secret: where one is set, only the holder
// of a private key can make tokens.
func (in *Installation) ServerKey() (ServerKey, error) {
	p, err := in.serverProperties()
	if err != nil {
		return ServerKey{}, err
	}
	no := func(why string) (ServerKey, error) {
		return ServerKey{}, fmt.Errorf("%w: %s: %s", ErrNoServerToken, shown(in.Root, in.Server.Path), why)
	}
	// Blanks belong to a value in this format, and so to the secret.
	enabled, _ := p.Get("server.jwtServerControlEnabled")
	secret, _ := p.Get("server.jwtServerSecretKey")
	url, _ := p.Get("server.jwksURL")
	switch {
	case !springTrue(enabled):
		return no("server.jwtServerControlEnabled is not true")
	case url != "":
		return no("server.jwksURL is set, so the server takes only tokens that are signed with its private key")
	case secret == "":
		return no("server.jwtServerSecretKey is empty")
	case strings.Contains(secret, "${"):
		return no("server.jwtServerSecretKey is a placeholder, and its value is known to the server only")
	}
	return ServerKey{sign: func(text string) []byte {
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(text)) // never fails
		return mac.Sum(nil)
	}}, nil
}

// Token makes a token that the server accepts until a minute after now (HS256, and
// no claim but its end; no "issued at", which a server refuses that thinks it is
// in the future). A key that is not set makes none: "".
//
// It is written out because a library for it would add 100 KB to the binary for
// these five lines.
func (k ServerKey) Token(now time.Time) string {
	return k.token(`{"exp":` + strconv.FormatInt(now.Add(tokenLife).Unix(), 10) + `}`)
}

func (k ServerKey) token(claims string) string {
	if k.sign == nil {
		return ""
	}
	b64 := base64.RawURLEncoding
	text := b64.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + b64.EncodeToString([]byte(claims))
	return text + "." + b64.EncodeToString(k.sign(text))
}

// springTrue is what the server's framework takes for true.
func springTrue(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "true", "on", "yes", "1":
		return true
	}
	return false
}

// serverProperties reads red5.properties again: the picture that Open took keeps
// no secret, and the panel may have changed the file since.
func (in *Installation) serverProperties() (*conf.Properties, error) {
	b, _, err := readBelow(in.Root, in.Server.Path, conf.MaxSettings)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", shown(in.Root, in.Server.Path), unreadable(err))
	}
	p, err := conf.ParseProperties(b)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", shown(in.Root, in.Server.Path), err)
	}
	return p, nil
}
