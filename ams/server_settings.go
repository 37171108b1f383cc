// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
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
	HTTPS  int `json:"https"` // if it has a certificate
	RTMP   int `json:"rtmp"`  // mostly of publishers
	RTMPS  int `json:"rtmps"`
	SRT    int `json:"srt"`    // UDP
	Origin int `json:"origin"` // between nodes
}

func defaultPorts() Ports {
	return Ports{HTTP: DefaultHTTPPort, HTTPS: 5443, RTMP: 1935, SRT: 4200, Origin: DefaultOriginPort}
}

// Limits are the loads in percent at which the server refuses a stream; 0 is its default, 75. Before 2.8 no memory limit is
// in percent, before 2.3.1 the CPU limit is 85 %: a score is a little too high.
type Limits struct{ CPU, Memory int }

func limitsOf(p *conf.Properties) Limits {
	percent := func(key string) int {
		text, _ := p.Get(key)
		n, err := strconv.Atoi(strings.TrimSpace(text)) // the server does not start with an invalid number
		if err != nil {
			return 0
		}
		return min(max(n, 10), 100) // as the server does
	}
	return Limits{CPU: percent("server.cpu_limit"), Memory: percent("server.memory_limit_percentage")}
}

func portsOf(p *conf.Properties) Ports {
	ports := defaultPorts()
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
	return ports
}

// placeholder is Spring's ${NAME} or ${NAME:DEFAULT}.
var placeholder = regexp.MustCompile(`^\$\{([^:{}]+):?([^{}]*)\}$`)

// springValue returns a value, or a placeholder's default and name, mostly an environment variable.
func springValue(p *conf.Properties, key string) (text, name string) {
	text, _ = p.Get(key)
	text = strings.TrimSpace(text)
	if m := placeholder.FindStringSubmatch(text); m != nil {
		return strings.TrimSpace(m[2]), m[1]
	}
	return text, ""
}

func springTrue(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "true", "on", "yes", "1":
		return true
	}
	return false
}

func portNumber(text string) (n int, ok bool) {
	n, err := strconv.Atoi(text)
	return n, err == nil && n > 0 && n < 1<<16
}

// Databases omits the console's, which has no streams. With an error, a count is incomplete.
func (in *Installation) Databases() ([]string, error) {
	names := []string{}
	var errs []error
	for _, a := range in.Apps {
		switch {
		case a.Console():
		case a.Err != nil:
			errs = append(errs, a.Err)
		case a.DBName == "":
			errs = append(errs, fmt.Errorf("%q has no db.name", filepath.Join(in.Root, a.File.Path)))
		default:
			names = append(names, a.DBName)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), errors.Join(errs...)
}

// tokenLife bounds a leaked token: it opens the server's whole management interface.
const tokenLife = time.Minute

// ServerToken makes a token for the server's REST calls from red5.properties. It fails with a JWKS URL: only the private
// key's holder can make those.
func (in *Installation) ServerToken(now time.Time) (string, error) {
	path := filepath.Join(in.Root, in.Server.Path)
	b, _, err := files.Root{Path: in.Root}.Read(in.Server.Path, conf.MaxSettings)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", path, unreadable(err))
	}
	p, err := conf.ParseProperties(b)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	// White space belongs to the secret in this format.
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
		// The server refuses an "iat" in its future.
		return token(secret, fmt.Sprintf(`{"exp":%d}`, now.Add(tokenLife).Unix())), nil
	}
	return "", fmt.Errorf("no token for the server's statistics can be made: %s: %s", path, why)
}

// token signs with HS256: a library would add 100 KB to the binary.
func token(secret, claims string) string {
	b64 := base64.RawURLEncoding
	text := b64.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + b64.EncodeToString([]byte(claims))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text))
	return text + "." + b64.EncodeToString(mac.Sum(nil))
}
