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

// MongoPath holds the connection string for the agent.
const MongoPath = "/etc/amsagent/mongo"

// Valve decides about the RemoteIpValve bean.
type Valve string

// The values of Valve.
const (
	ValveKeep   Valve = "keep"
	ValveRemove Valve = "remove"
	// ValveAuto removes it on Azure: the Application Gateway writes ip:port into X-Forwarded-For, which AMS
	// answers with 403.
	ValveAuto Valve = "auto"
)

// FileError is a configuration file that cannot be edited.
type FileError struct {
	Path string
	Err  error
}

func (e *FileError) Error() string {
	if text := e.Err.Error(); strings.HasPrefix(text, e.Path) {
		return text // it contains the path
	}
	return e.Path + ": " + e.Err.Error()
}

func (e *FileError) Unwrap() error { return e.Err }

// edits is the content that a join writes.
type edits struct {
	install     *ams.Installation
	mongo       cluster.Target
	mongoForm   redact.Secret
	removeValve bool
	address     netip.Addr // not written if invalid
	dropIn      bool
	stopTimeout time.Duration // of the drop-in; 0 leaves it out
	program     string        // the agent's path in the drop-in; "" leaves it out
	hostName    string        // "" leaves /etc/hosts unchanged
	// private reports that the files will hold a password. owner is the installation's user id.
	private bool
	owner   int
}

type setting struct {
	key, cluster, standalone string
	// ifPresent skips files without the key.
	ifPresent bool
}

// serverSettings are those of conf/red5.properties. AMS 3.x does not read user and password, and earlier releases
// prefer a URI in the host.
func serverSettings(form string) []setting {
	return []setting{
		{key: "clusterdb.host", cluster: form, standalone: "localhost"},
		{key: "clusterdb.user"},
		{key: "clusterdb.password"},
		// Releases that ignore AMS_HOST_ADDRESS would register the public address.
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

// planJoin joins the errors of all files that cannot be edited.
func planJoin(store *conf.Store, record *conf.Record, own []*conf.FileRecord, e edits) (*conf.Plan, error) {
	plan := store.NewPlan(record, own...)
	var errs []error
	edit := func(path string, kind conf.Kind, mode fs.FileMode, f func([]byte) ([]conf.Span, error)) {
		t := conf.Target{Path: path, Kind: kind, CreateMode: mode, Private: e.private && kind == conf.KindProperties, Owner: e.owner, Own: agentsOwn(path)}
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
	// The container is last because it decides the mode: after a crash, the mode fits the settings.
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

// distinct drops applications that link to another one's file. It prefers the record's path, so that a later link
// does not change the path to restore.
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

const hostsPath = "/etc/hosts"

func fileError(path string, err error) error {
	var perr *fs.PathError
	if errors.As(err, &perr) && !files.Refused(err) {
		// The text contains the path, below the root.
		return &FileError{Path: path, Err: perr.Err}
	}
	return &FileError{Path: path, Err: trimPath(path, err)}
}

func trimPath(path string, err error) error {
	if inner := errors.Unwrap(err); inner != nil && err.Error() == path+": "+inner.Error() {
		return inner
	}
	return err
}

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

// sibling is one of the two files that releases before 1.9.1 keep beside jee-container.xml.
func sibling(container string, mode conf.Mode) string {
	return path.Join(path.Dir(container), "jee-container-"+string(mode)+".xml")
}

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

// siblingSpans replaces the whole file, as releases before 1.9.1 do.
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

func whole(content []byte) func([]byte) ([]conf.Span, error) {
	return func(src []byte) ([]conf.Span, error) {
		if bytes.Equal(src, content) && src != nil {
			return nil, nil
		}
		return []conf.Span{{Anchor: "whole", Old: src, New: content}}, nil
	}
}
