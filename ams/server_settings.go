// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
)

// Ports are the server's configured ports; 0 is off.
type Ports struct {
	HTTP   int `json:"http"`
	HTTPS  int `json:"https"` // open once a certificate is set up
	RTMP   int `json:"rtmp"`
	RTMPS  int `json:"rtmps"`
	SRT    int `json:"srt"`    // UDP
	Origin int `json:"origin"` // between nodes
}

// Viewers returns the ports of viewers: players of HLS and DASH, and WebRTC websockets. RTMP clients are mostly
// publishers, and AMS's statistics do not count RTMP viewers either.
func (p Ports) Viewers() []int { return []int{p.HTTP, p.HTTPS} }

// defaultPorts returns AMS's defaults.
func defaultPorts() Ports {
	return Ports{HTTP: DefaultHTTPPort, HTTPS: 5443, RTMP: 1935, SRT: 4200, Origin: DefaultOriginPort}
}

// ServerSettings reads the current red5.properties: Open keeps no secret, and the panel may have changed the file since.
// A running server uses the file's content of its start. The result holds secrets: keep only the needed keys.
func (in *Installation) ServerSettings() (*conf.Properties, error) {
	b, _, err := files.Root{Path: in.Root}.Read(in.Server.Path, conf.MaxSettings)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", shown(in.Root, in.Server.Path), unreadable(err))
	}
	p, err := conf.ParseProperties(b)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", shown(in.Root, in.Server.Path), err)
	}
	return p, nil
}

// Ports reads the ports from the current red5.properties. Missing and invalid ports have AMS's defaults; with an error
// all have.
func (in *Installation) Ports() (Ports, error) {
	ports := defaultPorts()
	p, err := in.ServerSettings()
	if err != nil {
		return ports, err
	}
	set := func(key string, to *int) {
		text, _ := springValue(p, key)
		if n, ok := portNumber(text); ok {
			*to = n
		}
	}
	set("http.port", &ports.HTTP)
	set("https.port", &ports.HTTPS)
	set("rtmp.port", &ports.RTMP)
	set("server.srt_port", &ports.SRT)
	set("server.origin_port", &ports.Origin)
	if enabled, _ := springValue(p, "rtmps.enabled"); springTrue(enabled) {
		ports.RTMPS = 8443
		set("rtmps.port", &ports.RTMPS)
	}
	return ports, nil
}

// placeholder is ${NAME} or ${NAME:DEFAULT} of Spring.
var placeholder = regexp.MustCompile(`^\$\{([^:{}]+):?([^{}]*)\}$`)

// springValue returns the value of a key, or the default of the placeholder in its place. name is then what decides
// instead of the default: mostly a variable of the server's environment, which is not known here.
func springValue(p *conf.Properties, key string) (text, name string) {
	text, _ = p.Get(key)
	text = strings.TrimSpace(text)
	if m := placeholder.FindStringSubmatch(text); m != nil {
		return strings.TrimSpace(m[2]), m[1]
	}
	return text, ""
}

// springTrue reports whether Spring treats s as true.
func springTrue(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "true", "on", "yes", "1":
		return true
	}
	return false
}

// portNumber parses the number of a TCP or UDP port.
func portNumber(text string) (n int, ok bool) {
	n, err := strconv.Atoi(text)
	return n, err == nil && n > 0 && n < 1<<16
}

// Databases returns the databases of the applications, sorted, without the console's, which has no streams. The error
// names the applications whose database is not known: a count without them is not complete.
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

// errNoServerToken says that this server accepts no token that the agent could make. The wrapping error has the reason.
var errNoServerToken = errors.New("no token for the server's statistics can be made")

// ServerKey makes tokens for the server's REST calls. fmt, logs and JSON cannot show the secret.
type ServerKey struct {
	sign func(text string) []byte
}

// String hides the key.
func (ServerKey) String() string { return "***" }

// tokenLife is the validity of a token. The server requires no claim, and a leaked token without expiry would open its
// whole management interface for ever. Both clocks are one machine's, and a token is for one call.
const tokenLife = time.Minute

// ServerKey reads the key for tokens from the current red5.properties. It fails with errNoServerToken if the server
// accepts none of the agent's. The server prefers a JWKS URL to the secret: then only the holder of a private key can make
// tokens.
func (in *Installation) ServerKey() (ServerKey, error) {
	p, err := in.ServerSettings()
	if err != nil {
		return ServerKey{}, err
	}
	no := func(why string) (ServerKey, error) {
		return ServerKey{}, fmt.Errorf("%w: %s: %s", errNoServerToken, shown(in.Root, in.Server.Path), why)
	}
	// White space belongs to a value in this format, and so to the secret.
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

// Token returns a token that the server accepts until a minute after now (HS256, only with "exp": the server refuses an
// "iat" in its future). Without a key it returns "".
//
// A library for these five lines would add 100 KB to the binary.
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
