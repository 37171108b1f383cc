// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/redact"
)

// MongoPath is where join keeps the connection string for the agent itself.
const MongoPath = "/etc/amsagent/mongo"

// Valve says what becomes of the RemoteIpValve bean.
type Valve string

// What can become of it.
const (
	ValveKeep   Valve = "keep"
	ValveRemove Valve = "remove"
	// ValveAuto removes it on Azure, whose Application Gateway writes ip:port
	// into X-Forwarded-For, which AMS answers with 403.
	ValveAuto Valve = "auto"
)

// FileError is a configuration file that cannot be edited, with its line in the
// text where there is one.
type FileError struct {
	Path string
	Err  error
}

func (e *FileError) Error() string {
	if text := e.Err.Error(); strings.HasPrefix(text, e.Path) {
		return text // it names the file itself
	}
	return e.Path + ": " + e.Err.Error()
}

func (e *FileError) Unwrap() error { return e.Err }

// edits is what a join wants of the files.
type edits struct {
	install     *ams.Installation
	mongo       cluster.Target
	mongoForm   redact.Secret
	removeValve bool
	address     netip.Addr // not valid: none is written
	dropIn      bool
	stopTimeout time.Duration // of the drop-in; 0: it says nothing of it
	program     string        // of the drop-in: the agent; "": it calls nothing
	hostName    string        // "": /etc/hosts is left alone
	// private tells that the server's files will hold a password, and owner is the
	// user whom the installation belongs to.
	private bool
	owner   int
	former  *conf.Plan // that was committed last; nil: none
}

// setting is a property with its values in the two modes.
type setting struct {
	key, cluster, standalone string
	// ifPresent leaves a file without the key as it is.
	ifPresent bool
}

// serverSettings are those of conf/red5.properties. User and password are
// empty: AMS 3.x reads them no more, and before that a URI in the host wins.
func serverSettings(form string) []setting {
	return []setting{
		{key: "clusterdb.host", cluster: form, standalone: "localhost"},
		{key: "clusterdb.user"},
		{key: "clusterdb.password"},
		// The node's address is AMS_HOST_ADDRESS; a release that does not know
		// it would register the public address.
		{key: "useGlobalIp", cluster: "false", standalone: "false", ifPresent: true},
	}
}

// appSettings are those of an application's red5-web.properties.
func appSettings(form string) []setting {
	return []setting{
		{key: "db.type", cluster: "mongodb", standalone: "mapdb"},
		{key: "db.host", cluster: form, standalone: "localhost"},
		{key: "db.user", ifPresent: true},
		{key: "db.password", ifPresent: true},
	}
}

// planJoin plans every file of a cluster node. All files that cannot be edited
// are in the error, joined.
func planJoin(store *conf.Store, record *conf.Record, e edits) (*conf.Plan, error) {
	plan := store.NewPlan(record)
	plan.Follow(e.former)
	var errs []error
	edit := func(path string, kind conf.Kind, mode fs.FileMode, f func([]byte) ([]conf.Span, error)) {
		t := conf.Target{Path: path, Kind: kind, CreateMode: mode, Private: e.private && kind == conf.KindProperties, Owner: e.owner}
		if path == MongoPath {
			t.Private, t.Owner = e.private, 0
		}
		if err := plan.Edit(t, f); err != nil {
			errs = append(errs, fileError(path, err))
		}
	}
	form := e.mongoForm.Reveal()
	edit(e.install.Server.Path, conf.KindProperties, 0, propertySpans(serverSettings(form), conf.ModeCluster))
	for _, app := range distinct(e.install.Apps, record) {
		edit(app.File.Path, conf.KindProperties, 0, propertySpans(appSettings(form), conf.ModeCluster))
	}
	edit(MongoPath, conf.KindWhole, 0o600, whole([]byte(e.mongo.Raw().Reveal()+"\n")))
	if e.dropIn {
		edit(ams.DropInPath, conf.KindWhole, 0o644, whole(ams.DropIn(e.address, e.stopTimeout, e.program)))
	}
	if e.hostName != "" {
		edit(hostsPath, conf.KindHosts, 0o644, func(src []byte) ([]conf.Span, error) {
			return conf.AddHost(src, e.address, e.hostName), nil
		})
	}
	// The container decides the mode. It comes last, so that a machine that
	// goes down in the middle boots a server whose mode fits its settings.
	container := e.install.Container.Path
	kind := conf.KindContainer
	if e.install.Unmarked {
		kind = conf.KindWhole
	}
	edit(container, kind, 0, func(src []byte) ([]conf.Span, error) {
		return containerSpans(store, container, src, conf.ModeCluster, e.removeValve)
	})
	return plan, errors.Join(errs...)
}

// distinct drops applications whose file another one's link leads to. It keeps the name that a
// record knows, so that a link, or a folder, made later does not change by which name the file is
// given back; and of several, that of the folder itself.
func distinct(apps []ams.App, record *conf.Record) []ams.App {
	rank := func(a ams.App) (n int) {
		if record.File(a.File.Path) != nil || record != nil && slices.Contains(record.Known, a.File.Path) {
			n = 2
		}
		if path.Base(path.Dir(path.Dir(a.File.Real))) == a.Name {
			n++
		}
		return n
	}
	var out []ams.App
	for _, a := range apps {
		i := slices.IndexFunc(out, func(b ams.App) bool { return a.File.Real != "" && b.File.Real == a.File.Real })
		switch {
		case i < 0:
			out = append(out, a)
		case rank(a) > rank(out[i]):
			out[i] = a
		}
	}
	return out
}

// hostsPath is where one line makes the machine's own name resolvable.
const hostsPath = "/etc/hosts"

func fileError(path string, err error) error {
	var perr *fs.PathError
	if errors.As(err, &perr) && !files.Refused(err) {
		// The path is in the text already, with the root in front.
		return &FileError{Path: path, Err: perr.Err}
	}
	return &FileError{Path: path, Err: trimPath(path, err)}
}

// trimPath drops a wrapping that only repeats the path.
func trimPath(path string, err error) error {
	if inner := errors.Unwrap(err); inner != nil && err.Error() == path+": "+inner.Error() {
		return inner
	}
	return err
}

// propertySpans edits one .properties file to a mode.
func propertySpans(settings []setting, mode conf.Mode) func([]byte) ([]conf.Span, error) {
	return func(src []byte) ([]conf.Span, error) {
		if src == nil {
			return nil, fs.ErrNotExist
		}
		p, err := conf.ParseProperties(src)
		if err != nil {
			return nil, err
		}
		for _, s := range settings {
			if _, present := p.Get(s.key); !present && s.ifPresent {
				continue
			}
			value := s.standalone
			if mode == conf.ModeCluster {
				value = s.cluster
			}
			p.Set(s.key, value, &s.standalone)
		}
		return p.Spans(), nil
	}
}

// siblings are the two files that releases before 1.9.1 have beside
// jee-container.xml.
func sibling(container string, mode conf.Mode) string {
	return path.Join(path.Dir(container), "jee-container-"+string(mode)+".xml")
}

// containerSpans edits jee-container.xml to a mode.
func containerSpans(store *conf.Store, container string, src []byte, mode conf.Mode, removeValve bool) ([]conf.Span, error) {
	if src == nil {
		return nil, fs.ErrNotExist
	}
	c, err := conf.ParseContainer(src)
	if err != nil {
		return nil, err
	}
	if !c.Marked() && c.Mode() != mode {
		return siblingSpans(store, container, src, mode)
	}
	if err := c.SetMode(mode); err != nil {
		return nil, err
	}
	if removeValve {
		if err := c.RemoveRemoteIPValve(); err != nil {
			return nil, err
		}
	}
	return c.Spans(), nil
}

// siblingSpans replaces the whole file, as releases before 1.9.1 do it.
func siblingSpans(store *conf.Store, container string, src []byte, mode conf.Mode) ([]conf.Span, error) {
	name := sibling(container, mode)
	f, err := store.ReadSettings(name)
	if err != nil {
		return nil, err
	}
	if !f.Exists() {
		return nil, fmt.Errorf("line 1: %w, and no %s beside it to take instead", conf.ErrUnmarked, path.Base(name))
	}
	c, err := conf.ParseContainer(f.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path.Base(name), err)
	}
	if c.Mode() != mode {
		return nil, fmt.Errorf("%s makes the server run %s, not %s", path.Base(name), c.Mode(), mode)
	}
	if bytes.Equal(src, f.Bytes) {
		return nil, nil
	}
	return []conf.Span{{Anchor: "whole", Old: src, New: f.Bytes}}, nil
}

// whole replaces a whole file, or makes it.
func whole(content []byte) func([]byte) ([]conf.Span, error) {
	return func(src []byte) ([]conf.Span, error) {
		if bytes.Equal(src, content) && src != nil {
			return nil, nil
		}
		return []conf.Span{{Anchor: "whole", Old: src, New: content}}, nil
	}
}
