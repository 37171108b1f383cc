// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// installation is what the server reads from its files when it starts.
type installation struct {
	version, build string
	release        release
	cluster        bool
	httpHost       string
	httpPort       int
	useGlobalIP    bool
	store          database // of the cluster
	jwt            struct {
		enabled         bool
		secret, jwksURL string
	}
	apps []app
}

// database is where something is kept.
type database struct {
	kind, name           string // kind: mapdb, mongodb, redisdb
	host, user, password string
}

type app struct {
	name string
	db   database
}

// assumedVersion is what an installation without a jar is taken for.
const assumedVersion = "3.0.3"

func readInstallation(root, version string) (*installation, error) {
	in := &installation{version: version}
	manifest, build, err := manifestOf(filepath.Join(root, "ant-media-server.jar"))
	if err != nil {
		return nil, err
	}
	in.build = build
	if in.version == "" {
		in.version = manifest
	}
	if in.version == "" {
		in.version = assumedVersion
	}
	if in.release, err = parseRelease(in.version); err != nil {
		return nil, err
	}

	jee, err := readContainer(filepath.Join(root, "conf", "jee-container.xml"))
	if err != nil {
		return nil, err
	}
	in.cluster = slices.Contains(jee.beans, "tomcat.cluster")
	if !slices.Contains(jee.beans, "tomcat.server") {
		return nil, errors.New("conf/jee-container.xml: no bean named 'tomcat.server' is defined")
	}

	red5, err := readProperties(filepath.Join(root, "conf", "red5.properties"))
	if err != nil {
		return nil, err
	}
	// A placeholder without a value stops the Spring context.
	for _, key := range jee.placeholders {
		if _, ok := red5[key]; !ok && key != "red5.root" {
			return nil, fmt.Errorf("conf/red5.properties: could not resolve placeholder '%s'", key)
		}
	}
	in.httpHost = red5["http.host"]
	if in.httpPort, err = strconv.Atoi(red5["http.port"]); err != nil {
		return nil, fmt.Errorf("conf/red5.properties: http.port: %w", err)
	}
	in.useGlobalIP = red5["useGlobalIp"] == "true"
	in.jwt.enabled = springTrue(red5["server.jwtServerControlEnabled"])
	in.jwt.secret, in.jwt.jwksURL = red5["server.jwtServerSecretKey"], red5["server.jwksURL"]
	if in.cluster {
		in.store = database{
			kind: "mongodb", name: "clusterdb",
			host: red5["clusterdb.host"], user: red5["clusterdb.user"], password: red5["clusterdb.password"],
		}
	}

	files, err := filepath.Glob(filepath.Join(globQuote(root), "webapps", "*", "WEB-INF", "red5-web.properties"))
	if err != nil {
		return nil, fmt.Errorf("looking for applications: %w", err)
	}
	for _, file := range files {
		p, err := readProperties(file)
		if err != nil {
			return nil, err
		}
		in.apps = append(in.apps, app{
			name: filepath.Base(filepath.Dir(filepath.Dir(file))),
			db: database{
				kind: p["db.type"], name: p["db.name"],
				host: p["db.host"], user: p["db.user"], password: p["db.password"],
			},
		})
	}
	slices.SortFunc(in.apps, startOrder)
	return in, nil
}

// springTrue is what Spring takes for true.
func springTrue(s string) bool {
	return slices.Contains([]string{"true", "on", "yes", "1"}, strings.ToLower(strings.TrimSpace(s)))
}

// globQuote keeps the characters of a path from being taken for a pattern.
func globQuote(p string) string {
	out := make([]rune, 0, len(p))
	for _, r := range p {
		if r == '*' || r == '?' || r == '[' || r == '\\' {
			out = append(out, '\\')
		}
		out = append(out, r)
	}
	return string(out)
}

func readProperties(file string) (map[string]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	p, err := parseProperties(b)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return p, nil
}

// container is what counts in jee-container.xml.
type container struct {
	beans        []string // ids of all beans, the nested ones too
	placeholders []string // ${...} that have no default
}

var placeholder = regexp.MustCompile(`\$\{([^}:]+)(:[^}]*)?\}`)

func readContainer(file string) (*container, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	b = bytes.TrimPrefix(b, []byte("\uFEFF")) // Java's parser takes a byte order mark
	c := &container{}
	bad := func(what string, args ...any) error {
		return fmt.Errorf("%s is not well formed: %w", file, fmt.Errorf(what, args...))
	}
	d := xml.NewDecoder(bytes.NewReader(b))
	roots := 0
	var open []string // elements
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, bad("%w", err)
		}
		switch e := tok.(type) {
		case xml.StartElement:
			if len(open) == 0 {
				roots++
			}
			open = append(open, e.Name.Local)
			for _, a := range e.Attr {
				if e.Name.Local == "bean" && a.Name.Local == "id" {
					c.beans = append(c.beans, a.Value)
				}
				for _, m := range placeholder.FindAllStringSubmatch(a.Value, -1) {
					if m[2] == "" {
						c.placeholders = append(c.placeholders, m[1])
					}
				}
			}
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			if len(bytes.TrimSpace(e)) == 0 {
				continue
			}
			if len(open) == 0 {
				return nil, bad("text outside the root element")
			}
			// The schema lets these hold elements only, and Spring validates. A stray
			// half of a comment marker is such text.
			switch in := open[len(open)-1]; in {
			case "beans", "bean", "property", "constructor-arg", "list", "map", "entry":
				return nil, fmt.Errorf("%s is not valid: element '%s' cannot have text", file, in)
			}
		case xml.Comment:
			// encoding/xml lets a comment end with "--->"; XML does not.
			if len(e) > 0 && e[len(e)-1] == '-' {
				return nil, bad("a comment ends with --->")
			}
		}
	}
	if roots != 1 {
		return nil, bad("%d root elements", roots)
	}
	return c, nil
}
