// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
)

func seeInstall(_ *patient, in *bootstrap.Inspection) Result {
	mode := "in an unknown mode"
	if in.Mode != "" {
		mode = string(in.Mode)
	}
	return good("%s, %s", in.Install.Dir, mode)
}

// noInstall is the result of checks of an installation without one.
func noInstall() Result { return unknown("no Ant Media Server is found here") }

// oldest is the first release whose files are known; see docs/ARCHITECTURE.md.
const oldestMajor, oldestMinor = 1, 7

// newest is the newest release whose files were seen: docs/compatibility.md.
const newestMajor, newestMinor = 3, 0

func checkRelease(ctx context.Context, p *patient, in *bootstrap.Inspection) []Result {
	if found := findings(in.Findings, bootstrap.IDRelease); len(found) > 0 {
		return found
	}
	if in.Install == nil {
		return one(noInstall())
	}
	r := in.Install.Release
	if !r.AtLeast(oldestMajor, oldestMinor) {
		return one(warning("upgrade Ant Media Server", "%s is older than all that this agent was tried with (%d.%d)", r, oldestMajor, oldestMinor))
	}
	text := r.String()
	if !r.HonoursHostAddress() {
		text += "; it takes its address from the host name"
	}
	if r.AtLeast(newestMajor, newestMinor+1) {
		text += fmt.Sprintf("; newer than all that this agent was tried with (%d.%d): its files are judged by what is in them", newestMajor, newestMinor)
	}
	// A difference is a result of the views.
	if s, err := p.status.get(ctx); err == nil && s.Process.Release != nil {
		text += "; the server is up, and " + s.Process.Release.String()
	}
	return one(good("%s", text))
}

func seeSections(p *patient, in *bootstrap.Inspection) Result {
	switch {
	case in.Install == nil:
		return noInstall()
	case in.Mode == "":
		// A join can write it again from its record.
		_, err := in.Install.Mode()
		return bad("amsagent join writes it again; until then do not restart the server", "%v", err).from(err)
	case !in.Planned:
		return unknown("not looked at, because other files cannot be edited")
	}
	// The plan of a join over a foreign node does not show whether a leave can switch back.
	if file, err := p.store.ReadSettings(in.Install.Container.Path); err == nil && in.Mode == conf.ModeCluster {
		c, err := conf.ParseContainer(file.Bytes)
		if err == nil && c.Marked() {
			err = c.SetMode(conf.ModeStandalone)
		}
		if err != nil {
			return warning("correct that line: until then amsagent leave cannot make this machine standalone", "%v", err)
		}
	}
	return good("they can be switched; now %s", in.Mode)
}

func seeFiles(p *patient, in *bootstrap.Inspection) Result {
	if in.Install == nil {
		return noInstall()
	}
	// A crash of the machine can leave a file of zeros, which any reader of properties takes.
	var torn []string
	for _, f := range confFiles(in.Install) {
		if file, err := p.store.ReadSettings(f.Path); err == nil && bytes.IndexByte(file.Bytes, 0) >= 0 {
			torn = append(torn, f.Path)
		}
	}
	if len(torn) > 0 {
		return bad("put it back from a backup, or from the release", "there are zeros in %s, as a crash of the machine leaves them", few(torn))
	}
	if !in.Planned {
		return unknown("not all of them were looked at")
	}
	return good("red5.properties and the files of the applications (%d) can be read and edited", len(in.Install.Apps))
}

func seeApps(_ *patient, in *bootstrap.Inspection) Result {
	if in.Install == nil {
		return noInstall()
	}
	var names []string
	for _, a := range in.Install.Apps {
		names = append(names, strconv.Quote(a.Name))
	}
	if len(names) == 0 {
		return warning("put back webapps/root from the release", "no application is there, not even the web panel")
	}
	return good("%s", few(names))
}

// checkAppNames finds applications that the server started with its own defaults and saved so:
// see [ams.Installation.Initialized]. The name stays empty in later starts.
func checkAppNames(_ context.Context, p *patient, in *bootstrap.Inspection) []Result {
	if in.Install == nil {
		return one(noInstall())
	}
	var nameless []string
	for _, a := range in.Install.Apps {
		s, ok := p.read(a.File, a.Name)
		if !ok {
			continue
		}
		if name, set := s.props.Get("appName"); set && name == "" {
			nameless = append(nameless, strconv.Quote(a.Name))
		}
	}
	if len(nameless) > 0 {
		return one(warning("stop the server, write appName and the settings that were lost into red5-web.properties, and start it",
			"appName is empty in %s: a client requested them during a start, and the server saved its defaults over their settings", few(nameless)))
	}
	return one(good("none is lost"))
}

// confFiles are the files of the installation that AMS reads and writes itself.
func confFiles(in *ams.Installation) []ams.File {
	files := []ams.File{in.Container, in.Server}
	for _, a := range in.Apps {
		files = append(files, a.File)
	}
	return files
}

// checkOwners finds files that AMS cannot read or save: an editor that was run as
// root leaves them behind.
func checkOwners(_ context.Context, p *patient, in *bootstrap.Inspection) []Result {
	if in.Install == nil {
		return one(noInstall())
	}
	found := findings(in.Findings, bootstrap.IDFileOwner)
	owner, err := p.store.Files().Stat(in.Install.Dir)
	if err != nil {
		return append(found, notKnown(err))
	}
	var foreign, closed []string
	for _, f := range confFiles(in.Install) {
		st, err := p.store.Files().Stat(f.Path)
		switch {
		case err != nil: // reported elsewhere
		case st.UID != owner.UID && f.Path != in.Install.Container.Path:
			// AMS saves its settings into these.
			foreign = append(foreign, f.Path)
		case st.UID != owner.UID && !readableBy(st, owner), st.UID == owner.UID && st.Mode&0o400 == 0:
			closed = append(closed, f.Path)
		}
	}
	if len(foreign) > 0 && len(found) == 0 {
		found = append(found, warning(fmt.Sprintf("chown %d:%d FILE", owner.UID, owner.GID),
			"not owned by uid %d, which owns the installation, so that settings cannot be saved: %s", owner.UID, few(foreign)))
	}
	if len(closed) > 0 {
		found = append(found, bad(fmt.Sprintf("chown %d:%d FILE; chmod 0640 FILE", owner.UID, owner.GID),
			"the server cannot read %s", few(closed)))
	}
	if len(found) > 0 {
		return found
	}
	return one(good("all belong to uid %d, as the installation does", owner.UID))
}

// checkCount finds a server whose viewers are not known to a drain.
func checkCount(_ context.Context, p *patient, in *bootstrap.Inspection) []Result {
	switch {
	case in.Install == nil:
		return one(noInstall())
	case !p.running:
		return inTree()
	case in.Service.Dead():
		return one(good("the server does not run"))
	}
	if f, found := bootstrap.CheckCount(in.Service, in.Install); found {
		return one(warning(f.Hint, "%s", f.Text))
	}
	return one(good("by the server's statistics, or by its connections"))
}

func readableBy(st, who files.Info) bool {
	return who.UID == 0 || st.Mode&0o004 != 0 || st.GID == who.GID && st.Mode&0o040 != 0
}

// settingsFile is one .properties file, read.
type settingsFile struct {
	name  string // as people call it
	props *conf.Properties
}

func (p *patient) read(f ams.File, name string) (settingsFile, bool) {
	file, err := p.store.ReadSettings(f.Path)
	if err != nil || !file.Exists() {
		return settingsFile{}, false
	}
	props, err := conf.ParseProperties(file.Bytes)
	return settingsFile{name, props}, err == nil
}

// get returns the value without white space around it.
func (s settingsFile) get(key string) string {
	v, _ := s.props.Get(key)
	return strings.TrimSpace(v)
}

// checkSettings finds half changes of the vendor's script: it never adds a missing line, and ignores failures of sed.
func checkSettings(_ context.Context, p *patient, in *bootstrap.Inspection) []Result {
	if in.Install == nil || in.Mode == "" {
		return one(unknown("the mode of the files is not known"))
	}
	found := p.oddValues(in.Install)
	if in.Mode == conf.ModeStandalone {
		if len(found) > 0 {
			return found
		}
		return one(good("standalone: each server by itself"))
	}
	server, ok := p.read(in.Install.Server, "red5.properties")
	if !ok {
		return one(unknown("red5.properties cannot be read"))
	}
	host := server.get("clusterdb.host")
	const hint = "amsagent join writes all of them alike"
	if host == "" || host == "localhost" {
		found = append(found, bad(hint, "the sections are those of a cluster node, but clusterdb.host is %q: half switched", host))
	}
	var local, other []string
	for _, a := range in.Install.Apps {
		app, ok := p.read(a.File, a.Name)
		switch {
		case !ok:
		case app.get("db.type") != "mongodb":
			local = append(local, strconv.Quote(a.Name))
		case !slices.Contains([]string{host, "mongodb://" + host}, app.get("db.host")):
			other = append(other, strconv.Quote(a.Name))
		}
	}
	if len(local) > 0 {
		found = append(found, bad(hint, "a cluster node, but the applications %s do not use MongoDB: other nodes do not see their streams", few(local)))
	}
	if len(other) > 0 {
		found = append(found, warning(hint, "the applications %s use another database than clusterdb.host", few(other)))
	}
	if len(found) > 0 {
		return found
	}
	return one(good("red5.properties and the applications (%d) name the same database", len(in.Install.Apps)))
}

// oddValues finds applications with Redis, which the vendor's script writes for a DNS name or an address with a port, and
// white space at the end of a value, which belongs to it.
func (p *patient) oddValues(in *ams.Installation) (found []Result) {
	var redis, blanks []string
	look := func(f ams.File, name string, keys ...string) {
		s, ok := p.read(f, name)
		if !ok {
			return
		}
		if s.get("db.type") == "redisdb" {
			redis = append(redis, name)
		}
		for _, k := range keys {
			if v, _ := s.props.Get(k); strings.TrimRight(v, " \t") != v {
				blanks = append(blanks, fmt.Sprintf("%s in %s", k, name))
			}
		}
	}
	look(in.Server, "red5.properties", "clusterdb.host", "clusterdb.user", "clusterdb.password", "useGlobalIp", "http.port", "nodeGroup")
	for _, a := range in.Apps {
		look(a.File, strconv.Quote(a.Name), "db.type", "db.host", "db.name", "db.user", "db.password")
	}
	if len(redis) > 0 {
		found = append(found, warning("amsagent join writes db.type=mongodb", "db.type is redisdb in %s", few(redis)))
	}
	if len(blanks) > 0 {
		found = append(found, warning("remove them; amsagent join writes those of the database again", "a value ends with white space, which belongs to it: %s", few(blanks)))
	}
	return found
}
