// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
)

// Settings that may differ on nodes of one role: what a join writes, names and addresses, the port that a node's record has,
// and the server's own notes in an application's file.
var (
	addressKey = regexp.MustCompile(`(?i)(?:^|[._])(?:host|address)$`)
	ownKeys    = []string{
		"server.name", "http.port", "dbId", "updateTime", "appInstallationTime", "appStatus", "toBeDeleted", "pullWarFile", "warFileOriginServerAddress",
	}
)

func mayDiffer(key string) bool {
	written := func(s setting) bool { return s.key == key }
	return addressKey.MatchString(key) || slices.Contains(ownKeys, key) ||
		slices.ContainsFunc(serverSettings(""), written) || slices.ContainsFunc(appSettings(""), written)
}

// digests are of the settings files, by their paths in the installation, as of stamp.
type digests struct {
	stamp  string
	byName map[string]string
}

// stampOf changes with each file.
func (m *Machine) stampOf(list []ams.File) (stamp string, err error) {
	for _, f := range list {
		info, serr := files.Root{Path: m.Root}.Stat(f.Path)
		stamp, err = stamp+fmt.Sprintln(f.Path, info), cmp.Or(err, serr)
	}
	return stamp, err
}

// digest returns a hash of what the server's files mean, equal on nodes with equal settings, and that of each file. It fails
// if one of them is unreadable, or changes meanwhile. If no file changed since last, which it updates, it reads none.
func (m *Machine) digest(in *ams.Installation, last *digests) (all string, byName map[string]string, err error) {
	list := []ams.File{in.Container, in.Server}
	for _, app := range in.Apps {
		if list = append(list, app.File); app.Err != nil {
			return "", nil, app.Err
		}
	}
	stamp, err := m.stampOf(list)
	if err != nil {
		return "", nil, err
	}
	if stamp != last.stamp {
		byName, err := m.readDigests(in.Dir, list)
		if err != nil {
			return "", nil, err
		}
		if now, err := m.stampOf(list); err != nil || now != stamp {
			return "", nil, cmp.Or(err, errWritten)
		}
		*last = digests{stamp, byName}
	}
	var texts []string
	for name, sum := range last.byName {
		texts = append(texts, name+" "+sum)
	}
	return conf.Digest(texts), last.byName, nil
}

func (m *Machine) readDigests(dir string, list []ams.File) (map[string]string, error) {
	byName := map[string]string{}
	for i, f := range list {
		kind := conf.KindProperties
		if i == 0 {
			kind = conf.KindContainer
		}
		src, _, err := files.Root{Path: m.Root}.Read(f.Path, conf.MaxSettings)
		if err != nil {
			return nil, err
		}
		if byName[strings.TrimPrefix(f.Path, dir+"/")], err = conf.DigestFile(kind, src, mayDiffer); err != nil {
			return nil, err
		}
	}
	return byName, nil
}

var errWritten = errors.New("the server's files are being written")
