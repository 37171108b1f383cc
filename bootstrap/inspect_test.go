// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

func inspect(t *testing.T, m *Machine, req JoinRequest) *Inspection {
	t.Helper()
	if req.Identify == nil {
		req.Identify = func(context.Context) (metadata.Instance, error) {
			return metadata.Instance{ID: "i-1", Address: netip.MustParseAddr("10.0.0.5")}, nil
		}
	}
	before := treeFiles(t, m)
	in, err := m.Inspect(t.Context(), req)
	must.OK(t, err)
	if d := cmp.Diff(before, treeFiles(t, m)); d != "" {
		t.Errorf("an inspection wrote:\n%s", d)
	}
	return in
}

func failedOf(fs []Finding) []Finding {
	failed, _ := Failed(fs)
	return failed
}

func warningsOf(fs []Finding) []Finding {
	_, warnings := Failed(fs)
	return warnings
}

func findingIDs(fs []Finding) []string {
	var out []string
	for _, f := range fs {
		out = append(out, f.ID)
	}
	return out
}

// An inspection finds what the preflight of a join finds, without a join.
func TestInspect(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	in := inspect(t, m, JoinRequest{Mongo: mustTarget(t, "10.0.2.4")})
	if len(failedOf(in.Findings)) > 0 || !in.Planned || !in.Writable || in.Mode != conf.ModeStandalone || in.State != nil || in.Unread != nil {
		t.Errorf("%+v", in)
	}
	if !slices.Contains(in.Changes, "/usr/local/antmedia/conf/jee-container.xml") || !slices.Contains(in.Changes, MongoPath) {
		t.Errorf("a join would change %v", in.Changes)
	}
	if _, err := os.Stat(filepath.Join(m.Root, StateDir)); err == nil {
		t.Error("the agent's folder was made")
	}

	// Without an address of MongoDB the check whether the files can be edited still runs.
	if in := inspect(t, m, JoinRequest{}); !in.Planned || in.Changes != nil || len(failedOf(in.Findings)) > 0 {
		t.Errorf("%+v", in)
	}
	// A loopback address is reported without a connection.
	if in := inspect(t, m, JoinRequest{Mongo: mustTarget(t, "127.0.0.1")}); !slices.Contains(findingIDs(warningsOf(in.Findings)), IDMongoLocal) {
		t.Errorf("%v", warningsOf(in.Findings))
	}

	edit(t, m, "conf/jee-container.xml", "cluster end -->", "cluster end")
	in = inspect(t, m, JoinRequest{Identify: func(context.Context) (metadata.Instance, error) {
		return metadata.Instance{}, errors.New("no answer")
	}})
	if got := findingIDs(failedOf(in.Findings)); !slices.Equal(got, []string{IDIdentity, IDSections}) && !slices.Equal(got, []string{IDIdentity, IDFile}) || in.Planned {
		t.Errorf("failed: %v", failedOf(in.Findings))
	}
	empty := &Machine{Root: t.TempDir(), Service: m.Service}
	in, err := empty.Inspect(t.Context(), JoinRequest{Identify: func(context.Context) (metadata.Instance, error) {
		return metadata.Instance{}, nil
	}})
	if err != nil || !slices.Contains(findingIDs(failedOf(in.Findings)), IDInstall) || in.Install != nil {
		t.Errorf("%+v, %v", in, err)
	}
}

// What a joined machine remembers is in it, and a record that cannot be used is a finding.
func TestInspectRecord(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	joinOffline(t, m, "10.0.2.4", "10.0.0.5")
	if in := inspect(t, m, JoinRequest{Mongo: mustTarget(t, "10.0.2.4")}); !in.Undo || in.Mode != conf.ModeCluster {
		t.Errorf("%+v", in)
	}
	must.OK(t, os.WriteFile(filepath.Join(m.Root, statePath), []byte("{"), 0o600))
	if in := inspect(t, m, JoinRequest{}); !slices.Contains(findingIDs(warningsOf(in.Findings)), IDRecord) {
		t.Errorf("%v", warningsOf(in.Findings))
	}
}

// The address has a reason that names its source, also for a machine outside a cloud.
func TestAddressReason(t *testing.T) {
	t.Parallel()
	m := &Machine{Root: t.TempDir()}
	for _, c := range []struct{ provider, source, want string }{
		{metadata.Generic, "address of the default route's interface eth0", "address of the default route's interface eth0"},
		{metadata.AWS, "private address of the identity document", "instance metadata of aws: private address of the identity document"},
	} {
		a, err := m.address("", false, metadata.Instance{Provider: c.provider, Address: netip.MustParseAddr("10.0.0.5"), AddressSource: c.source})
		if err != nil || a.Reason != c.want {
			t.Errorf("%s: %q, %v", c.provider, a.Reason, err)
		}
	}
}

// A count of one has the word in the singular.
func TestOneFile(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	m.DropIn = true
	joinOffline(t, m, "10.0.2.4", "10.0.0.5")
	var said []string
	m.Progress = func(s string) { said = append(said, s) }
	joinOffline(t, m, "10.0.2.4", "10.0.0.6") // in the drop-in alone
	if !slices.Contains(said, "edited 1 file; nothing else was touched") {
		t.Errorf("said %q", said)
	}
}

func TestReach(t *testing.T) {
	t.Parallel()
	m := &Machine{Connect: func(context.Context, cluster.Target) (*cluster.Client, error) {
		return nil, &cluster.Error{Kind: cluster.KindAuth, Op: "x", Err: errors.New("y")}
	}, Progress: func(s string) { t.Errorf("said: %s", s) }}
	c, found := m.Reach(t.Context(), mustTarget(t, "10.0.2.4"))
	if c != nil || !slices.Equal(findingIDs(found), []string{IDMongoAuth}) || found[0].Severity != Bad {
		t.Errorf("%v, %v", c, found)
	}
}

// The list of the ids of disagreements is that of the code.
func TestStatusIDs(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile("status.go")
	must.OK(t, err)
	var want []string
	for _, m := range regexp.MustCompile(`add\("([A-Z]+-[A-Z-]+)"`).FindAllSubmatch(src, -1) {
		want = append(want, string(m[1]))
	}
	slices.Sort(want)
	if got := slices.Sorted(slices.Values(StatusIDs())); !slices.Equal(got, slices.Compact(want)) {
		t.Errorf("listed %v\nused   %v", got, want)
	}
}

// Files that an offline join edited are the agent's, not foreign.
func TestStatusOfOfflineJoin(t *testing.T) {
	t.Parallel()
	ids := func(m *Machine) (ids []string) {
		t.Helper()
		s, err := m.Status(t.Context(), StatusRequest{})
		must.OK(t, err)
		for _, d := range s.Disagree {
			ids = append(ids, d.ID)
		}
		return ids
	}
	m := ownTree(t, "3.0", "3.0.3")
	joinOffline(t, m, testMongo, "10.0.1.7")
	if got := ids(m); !slices.Contains(got, "STATUS-JOINING") || slices.Contains(got, "STATUS-FOREIGN") {
		t.Errorf("%v", got)
	}
	// Without the agent's state they are foreign.
	must.OK(t, os.RemoveAll(filepath.Join(m.Root, StateDir)))
	if got := ids(m); !slices.Contains(got, "STATUS-FOREIGN") || slices.Contains(got, "STATUS-JOINING") {
		t.Errorf("%v", got)
	}
}
