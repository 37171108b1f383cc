// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
)

const (
	// DefaultDir is the only directory that the vendor's scripts support.
	DefaultDir = "/usr/local/antmedia"
	// DefaultUnit is the vendor's unit.
	DefaultUnit = "antmedia.service"
	// DefaultHTTPPort is the server's default.
	DefaultHTTPPort = 5080
	// DefaultOriginPort is for calls between nodes.
	DefaultOriginPort = 5000

	containerName = "conf/jee-container.xml"
	serverName    = "conf/red5.properties"
	webappsName   = "webapps"
	jarName       = "ant-media-server.jar"
	appFileName   = "WEB-INF/red5-web.properties"
	consoleApp    = "root"
)

// Warnings of [Open].
const (
	WarnAppIncomplete = "AMS-APP-INCOMPLETE" // no application's file, or a broken link
	WarnAppEncoding   = "AMS-APP-ENCODING"   // not representable in the undo record
	warnAppLink       = "AMS-FILE-LINK"      // a link that is not followed
	WarnHTTPPort      = "AMS-HTTP-PORT"
	WarnServerSyntax  = "AMS-SERVER-SYNTAX"
)

const (
	maxApps = 4096
	// maxDBName is MongoDB's limit in bytes.
	maxDBName     = 63
	maxSystemFile = 4 << 20
)

// File is an installation's file.
type File struct {
	// Path is below the root, as Ant Media Server opens it.
	Path string `json:"path"`
	// Real includes the root, with links resolved. One file has one Real.
	Real string `json:"real"`
}

// Installation is a snapshot from [Open].
type Installation struct {
	Root string // "/" is the real root
	Dir  string // below Root

	Container File // conf/jee-container.xml
	Server    File // conf/red5.properties

	Release Release

	HTTPHost string // empty or 0.0.0.0 is all
	// Invalid Ports, and all with a ServerErr, are the server's defaults.
	Ports     Ports
	Limits    Limits
	ServerErr error // of conf/red5.properties

	Apps     []App // by name
	Warnings []Warning

	// Unmarked: a release before 1.9.1, which copies one of two siblings over jee-container.xml.
	Unmarked bool

	mode    conf.Mode
	modeErr error
	stamp   stamp
}

// stamp has red5.properties (port) and the jar (release); zero if unreadable.
type stamp [2]files.Info

func (in *Installation) stampNow() (s stamp) {
	for i, name := range [len(s)]string{serverName, jarName} {
		s[i], _ = statBelow(in.Root, filepath.Join(in.Dir, name))
	}
	return s
}

// Outdated reports whether port or release may have changed. It reads no file: cheap every second.
func (in *Installation) Outdated() bool { return in.stampNow() != in.stamp }

// App is an application or the console.
type App struct {
	Name   string // the folder below webapps
	File   File   // WEB-INF/red5-web.properties
	DBName string // "" if not set
	// Err is set if File is unreadable. The application still counts: a switch of mode without it would break it.
	Err error
}

// Console reports whether this is the web console.
func (a App) Console() bool { return a.Name == consoleApp }

// Open reads the installation in dir, default DefaultDir, below root. It returns errNotAMS, or why it is unreadable.
// Broken content is no error: see [Installation.Mode] and [App.Err].
func Open(root, dir string) (*Installation, error) {
	root, err := filepath.Abs(cmp.Or(root, "/"))
	dir = cmp.Or(dir, DefaultDir)
	if err == nil && realRoot(root) {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return nil, err
	}
	dir = filepath.Join("/", dir)
	in := &Installation{Root: root, Dir: dir, Ports: defaultPorts()}
	in.stamp = in.stampNow() // before anything is read

	var missing []string
	var problems []error
	need := func(name string, err error) {
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
			missing = append(missing, name)
		case err != nil:
			problems = append(problems, fmt.Errorf("reading %s: %w", filepath.Join(root, dir, name), unreadable(err)))
		}
	}
	container, err := in.read(containerName, &in.Container)
	need(containerName, err)
	server, err := in.read(serverName, &in.Server)
	need(serverName, err)
	entries, err := webapps(root, dir)
	need(webappsName, err)
	if len(missing) > 0 {
		problems = append(problems, fmt.Errorf("%s is %w: missing %s", filepath.Join(root, dir), errNotAMS, strings.Join(missing, ", ")))
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}

	if c, err := conf.ParseContainer(container); err != nil {
		in.modeErr = fmt.Errorf("reading %s: %w", filepath.Join(root, in.Container.Path), err)
	} else {
		in.mode, in.Unmarked = c.Mode(), !c.Marked()
	}
	in.readServer(server)
	in.Release = jarRelease(root, filepath.Join(dir, jarName))
	in.readApps(entries)
	return in, nil
}

// Mode returns the mode of jee-container.xml, or why it is unknown.
func (in *Installation) Mode() (conf.Mode, error) { return in.mode, in.modeErr }

// BaseURL returns the server's local URL: the loopback unless it binds to one address. An invalid host could lead
// elsewhere.
func (in *Installation) BaseURL() string {
	host := in.HTTPHost
	a, err := netip.ParseAddr(host)
	if err == nil && (a.IsUnspecified() || a.Zone() != "") || err != nil && !hostName.MatchString(host) {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, strconv.Itoa(in.Ports.HTTP))
}

var hostName = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._-]*$`)

func realRoot(root string) bool { return root == "" || filepath.Clean(root) == "/" }

func statBelow(root, path string) (files.Info, error) { return files.Root{Path: root}.Stat(path) }

func unreadable(err error) error { return fmt.Errorf("unreadable: %w", err) }

func (in *Installation) read(name string, f *File) ([]byte, error) {
	f.Path = filepath.Join(in.Dir, name)
	b, at, err := files.Root{Path: in.Root}.Read(f.Path, conf.MaxSettings)
	if at != "" {
		f.Real = filepath.Join(in.Root, at)
	}
	return b, err
}

func webapps(root, dir string) ([]fs.DirEntry, error) {
	d, err := files.Root{Path: root}.Folder(filepath.Join(dir, webappsName))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Entries(maxApps)
}

func (in *Installation) warn(id, format string, args ...any) {
	in.Warnings = append(in.Warnings, Warning{ID: id, Text: fmt.Sprintf(format, args...)})
}

func (in *Installation) readServer(b []byte) {
	p, err := conf.ParseProperties(b)
	if err != nil {
		in.ServerErr = fmt.Errorf("reading %s: %w", filepath.Join(in.Root, in.Server.Path), err)
		in.warn(WarnServerSyntax, "%s: %v; the server's defaults are assumed", filepath.Join(in.Root, in.Server.Path), err)
		return
	}
	in.HTTPHost, _ = springValue(p, "http.host")
	in.Ports, in.Limits = portsOf(p), limitsOf(p)
	text, name := springValue(p, "http.port")
	_, isPort := portNumber(text)
	if given, _ := p.Get("http.port"); name != "" || text != "" && !isPort {
		in.warn(WarnHTTPPort, "%s: http.port=%q is not a plain port, and the server's environment is not known here; %d is assumed",
			filepath.Join(in.Root, in.Server.Path), strings.TrimSpace(given), in.Ports.HTTP)
	}
}

func (in *Installation) readApps(entries []fs.DirEntry) {
	in.Apps = []App{}
	for _, e := range entries {
		app := App{Name: e.Name()}
		folder := filepath.Join(in.Dir, webappsName, app.Name)
		st, err := statBelow(in.Root, folder)
		switch {
		case err == nil && !st.Mode.IsDir():
		case errors.Is(err, files.ErrLink):
			in.warn(warnAppLink, "%v; it is no application", err)
		case err != nil && !errors.Is(err, fs.ErrPermission):
			in.warn(WarnAppIncomplete, "%q leads nowhere; it is no application", filepath.Join(in.Root, folder))
		case in.readApp(&app):
			in.Apps = append(in.Apps, app)
		}
	}
}

func (in *Installation) readApp(app *App) bool {
	b, err := in.read(filepath.Join(webappsName, app.Name, appFileName), &app.File)
	folder := filepath.Join(in.Root, in.Dir, webappsName, app.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if !strings.HasPrefix(app.Name, ".") {
			in.warn(WarnAppIncomplete, "%q has no %s; it is no application", folder, appFileName)
		}
		return false
	case !utf8.ValidString(app.Name), !utf8.ValidString(strings.TrimPrefix(app.File.Real, in.Root)):
		// Java does not find it either.
		in.warn(WarnAppEncoding, "%q, or the folder that it leads to, has a name that is not valid UTF-8: it is left as it is, and is no application", folder)
		return false
	case err != nil:
		app.Err = fmt.Errorf("reading %q: %w", filepath.Join(in.Root, app.File.Path), unreadable(err))
		return true
	}
	p, err := conf.ParseProperties(b)
	if err != nil {
		app.Err = fmt.Errorf("reading %q: %w", filepath.Join(in.Root, app.File.Path), err)
		return true
	}
	name, _ := p.Get("db.name")
	if len(name) > maxDBName {
		app.Err = fmt.Errorf("reading %q: db.name has %d bytes, and MongoDB takes %d at most", filepath.Join(in.Root, app.File.Path), len(name), maxDBName)
		return true
	}
	app.DBName = strings.Clone(name) // do not keep the whole file
	return true
}
