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

// tokenLife is the validity of a token. The server requires no claim, and a leaked token without expiry would open its
// whole management interface for ever.
const tokenLife = time.Minute

// ServerToken makes a token for one of the server's REST calls, valid for a minute from now, with the secret in the
// current red5.properties. It fails if the server accepts no such token: it prefers a JWKS URL to the secret, and then
// only the holder of a private key can make tokens.
func (in *Installation) ServerToken(now time.Time) (string, error) {
	p, err := in.ServerSettings()
	if err != nil {
		return "", err
	}
	// White space belongs to a value in this format, and so to the secret.
	enabled, _ := p.Get("server.jwtServerControlEnabled")
	secret, _ := p.Get("server.jwtServerSecretKey")
	jwks, _ := p.Get("server.jwksURL")
	why := ""
	switch {
	case !springTrue(enabled):
		why = "server.jwtServerControlEnabled is not true"
	case jwks != "":
		why = "server.jwksURL is set, so the server takes only tokens that are signed with its private key"
	case secret == "":
		why = "server.jwtServerSecretKey is empty"
	case strings.Contains(secret, "${"):
		why = "server.jwtServerSecretKey is a placeholder, and its value is known to the server only"
	default:
		// Only "exp": the server refuses an "iat" in its future.
		return token(secret, fmt.Sprintf(`{"exp":%d}`, now.Add(tokenLife).Unix())), nil
	}
	return "", fmt.Errorf("%w: %s: %s", errNoServerToken, shown(in.Root, in.Server.Path), why)
}

// token signs claims with HS256. A library for these lines would add 100 KB to the binary.
func token(secret, claims string) string {
	b64 := base64.RawURLEncoding
	text := b64.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + b64.EncodeToString([]byte(claims))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text)) // never fails
	return text + "." + b64.EncodeToString(mac.Sum(nil))
}
