// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"strings"
	"testing"
)

// aPeer is a node with a fresh heartbeat, written as "role digest", with a word about it if it is another one.
func aPeer(i int, text string) Member {
	words := append(strings.Fields(text), "", "", "")
	n := Node{ID: fmt.Sprint("i-", i), IP: fmt.Sprint("10.0.0.", i), Role: words[0], AMS: "3.0.3", State: StateActive}
	n.Digest = strings.Trim(words[1], "-")
	m := Member{Node: &n, Agent: Signal{Known: true, Fresh: true}}
	switch words[2] {
	case "silent":
		m.Agent.Fresh = false
	case "joining", "draining", "left":
		n.State = State(words[2])
	case "older":
		n.AMS = "2.17.1"
	}
	return m
}

func TestSettingsDifferences(t *testing.T) {
	for name, tt := range map[string]struct {
		nodes []string
		want  string
	}{
		"none":                   {nil, ""},
		"equal":                  {[]string{"edge a", "edge a", "origin b"}, ""},
		"one differs":            {[]string{"edge a", "edge b", "edge a"}, "10.0.0.2 differs from most nodes of role edge in the server's settings"},
		"two differ":             {[]string{"edge a", "edge b", "edge c", "edge a", "edge a"}, "10.0.0.2, 10.0.0.3 differ from most nodes of role edge in the server's settings"},
		"two nodes":              {[]string{"edge a", "edge b"}, "10.0.0.1, 10.0.0.2 differ from other nodes of role edge in the server's settings"},
		"no majority":            {[]string{"edge a", "edge b", "edge a", "edge b"}, "10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4 differ from other nodes of role edge in the server's settings"},
		"many":                   {strings.Split(strings.Repeat("edge a,edge b,", 4)+"edge c", ","), "10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5, 4 more differ from other nodes of role edge in the server's settings"},
		"each role":              {[]string{"edge a", "edge b", "origin c", "origin d"}, "10.0.0.1, 10.0.0.2 differ from other nodes of role edge in the server's settings|10.0.0.3, 10.0.0.4 differ from other nodes of role origin in the server's settings"},
		"unknown is no answer":   {[]string{"edge a", "edge -", "edge a", "edge -"}, ""},
		"one is known":           {[]string{"edge a", "edge -"}, ""},
		"silent, joining, left":  {[]string{"edge a", "edge b silent", "edge c joining", "edge d left"}, ""},
		"one drains":             {[]string{"edge a", "edge b draining", "edge a"}, "10.0.0.2 differs from most nodes of role edge in the server's settings"},
		"in a rolling upgrade":   {[]string{"edge a", "edge a", "edge b older", "edge b older"}, ""},
		"of the former release":  {[]string{"edge a", "edge b older", "edge c older"}, "10.0.0.2, 10.0.0.3 differ from other nodes of role edge in the server's settings"},
		"a server without agent": {[]string{"edge a", ""}, ""},
	} {
		var members []Member
		for i, text := range tt.nodes {
			m := aPeer(i+1, text)
			if text == "" {
				m.Node = nil
			}
			members = append(members, m)
		}
		var got []string
		for _, d := range SettingsDifferences(members) {
			got = append(got, d.String())
			if len(d.Nodes) != len(d.Addresses) {
				t.Errorf("%s: %+v", name, d)
			}
		}
		if s := strings.Join(got, "|"); s != tt.want {
			t.Errorf("%s: %q, want %q", name, s, tt.want)
		}
	}
	without := aPeer(1, "x a")
	without.Node.Role = ""
	other := aPeer(2, "x b")
	other.Node.Role = ""
	if d := SettingsDifferences([]Member{without, other}); len(d) != 1 || !strings.Contains(d[0].String(), "nodes without a role") {
		t.Errorf("%v", d)
	}
}
