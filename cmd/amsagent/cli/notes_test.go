// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"maps"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

func TestUnreadTags(t *testing.T) {
	type m = map[string]string
	const unread = "tags that are not read: "
	for _, tt := range []struct {
		tags m
		want string
	}{
		{nil, ""},
		{m{"Name": "x", "owner:amsagent": "x"}, ""},
		{m{"amsagent:role": "edge", "amsagent-mongo": "h", "amsagent:drain-deadline": "20m", "amsagent-drain-deadline": "20m"}, ""},
		{m{"amsagent:hooks": "a", "amsagent-rol": "edge", "AMSAGENT:role": "x"}, "AMSAGENT:role, amsagent-rol, amsagent:hooks; those that are: amsagent:mongo, amsagent:role"},
	} {
		srv := metadataOfAWS(t, func() m { return tt.tags })
		_, _, stderr := run(t, m{"AMSAGENT_PROVIDER": "aws", "AMSAGENT_AWS_ENDPOINT": srv.URL}, "config")
		if strings.Contains(stderr, unread) != (tt.want != "") || !strings.Contains(stderr, tt.want) {
			t.Errorf("%v: want %q in\n%s", tt.tags, tt.want, stderr)
		}
	}
}

// The daemon logs a tag that is not read once, and status shows it.
func TestNotesOfTheDaemon(t *testing.T) {
	t.Parallel()
	srv := metadataOfAWS(t, func() map[string]string { return map[string]string{"amsagent:hooks": "drain"} })
	a, e := adapterOnAWS(t, srv)
	for range 2 {
		_, err := a.ask(t.Context())
		must.OK(t, err)
	}
	must.Equal(t, "hooks in the log:\n"+e.stderr.String(), strings.Count(e.stderr.String(), "amsagent:hooks"), 1)
	w := &output.Text{Now: fixedNow()}
	statusText(w, &statusView{Status: &bootstrap.Status{}, Daemon: &daemon.View{Notes: a.g.lastSeen().Notes}})
	must.Contain(t, "status", w.String(), "note: tags that are not read: amsagent:hooks; ")
}

// A machine on which nothing names a cloud is no machine of a cloud that the operator, or the machine, names.
func TestUnrecognisedCloud(t *testing.T) {
	const noCloud = "no cloud recognised: no scale-in will be announced here; if there is one, --provider aws|azure|alibaba|gcp"
	hetzner := map[string]string{"sys/class/dmi/id/sys_vendor": "Hetzner\n"}
	for name, tt := range map[string]struct {
		files map[string]string
		vars  map[string]string
		want  bool
	}{
		"nothing":           {nil, nil, true},
		"another cloud":     {hetzner, nil, false},
		"named by the user": {nil, map[string]string{"AMSAGENT_PROVIDER": "generic"}, false},
	} {
		files := map[string]string{"etc/machine-id": "0123456789abcdef0123456789abcdef\n"}
		maps.Copy(files, tt.files)
		vars := map[string]string{"AMSAGENT_ROOT": tree(t, files)}
		maps.Copy(vars, tt.vars)
		if _, stdout, stderr := run(t, vars, "doctor"); strings.Contains(stdout, noCloud) != tt.want {
			t.Errorf("%s: %q in the doctor's results, want %v\n%s%s", name, noCloud, tt.want, stdout, stderr)
		}
	}
}

func TestRoleNote(t *testing.T) {
	for _, tt := range []struct {
		role string
		inst metadata.Instance
		want string
	}{
		{"edge", metadata.Instance{}, ""},
		{"", metadata.Instance{TagsKnown: true}, "no role: balancers by role send nothing here; --role"},
		{"", metadata.Instance{TagsHint: "no tags are shown"}, "no role: balancers by role send nothing here; --role; no instance tags: no tags are shown"},
	} {
		must.Equal(t, "role "+tt.role, roleNote(tt.role, tt.inst), tt.want)
	}
}
