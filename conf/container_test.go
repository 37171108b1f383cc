// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// standaloneXML is a small jee-container.xml of our own with three sections,
// a decoy, an https section and the trailing blank of the real files.
const standaloneXML = `<?xml version="1.0" encoding="UTF-8"?>
<beans xmlns="http://www.springframework.org/schema/beans">
	<!-- tomcat.cluster must come first -->
	<!-- cluster start
	<bean id="tomcat.cluster" class="io.antmedia.enterprise.cluster.TcpCluster">
		<constructor-arg value="${clusterdb.host}" />
	</bean>

	cluster end -->
	<bean id="tomcat.server" class="org.red5.server.tomcat.TomcatLoader">
		<!-- cluster --><!-- property name="cluster" ref="tomcat.cluster" /--><!-- cluster -->
		<!-- cluster start
		<property name="clusterNotifier" ref="tomcat.cluster" />
		cluster end -->
		<!-- https start
		<bean name="httpsConnector" />
		https end -->
		<property name="valves">
			<list>
				<bean id="valve.access" class="org.apache.catalina.valves.RemoteIpValve" />
				<bean id="valve.access" class="org.apache.catalina.valves.AccessLogValve">
					<property name="pattern" value="a > b" />
				</bean>
				<!-- cluster start
				<bean id="valve.cluster" class="io.antmedia.enterprise.cluster.HttpLiveStreamValve" />
				cluster end --> 
			</list>
		</property>
	</bean>
</beans>
`

var clusterXML = strings.NewReplacer(
	"<!-- cluster start\n", "<!-- cluster start -->\n",
	"\tcluster end -->", "\t<!-- cluster end -->",
).Replace(standaloneXML)

func mustContainer(t *testing.T, src string) *Container {
	t.Helper()
	c, err := ParseContainer([]byte(src))
	must.OK(t, err)
	return c
}

// TestContainerVendorDrift: the vendor's script leaves one more blank behind
// the opening marker on every run (facts, defect 8).
func TestContainerVendorDrift(t *testing.T) {
	drifted := strings.ReplaceAll(standaloneXML, "<!-- cluster start\n", "<!-- cluster start   \n")
	c := mustContainer(t, drifted)
	must.Equal(t, "the mode", c.Mode(), ModeStandalone)
	must.OK(t, c.SetMode(ModeCluster))
	must.NoDiff(t, "the cluster form of a drifted file", string(c.Bytes()), clusterXML)
	u, err := recordOf(KindContainer, []byte(drifted), c).Undo(c.Bytes())
	must.OK(t, err)
	must.NoDiff(t, "undone", string(u.Bytes), drifted)
	// The script's form of a file in cluster mode, without a record and with one.
	script := strings.ReplaceAll(clusterXML, "<!-- cluster start -->\n", "<!-- cluster start -->  \n")
	d := mustContainer(t, script)
	must.OK(t, d.SetMode(ModeStandalone))
	must.NoDiff(t, "the clean standalone form", string(d.Bytes()), standaloneXML)
	c = mustContainer(t, standaloneXML)
	must.OK(t, c.SetMode(ModeCluster))
	rec := recordOf(KindContainer, []byte(standaloneXML), c)
	u, err = rec.Undo([]byte(script))
	must.OK(t, err)
	must.NoDiff(t, "undone after the script", string(u.Bytes), standaloneXML)
	must.Equal(t, "conflicts", len(u.Conflicts), 0)
	if _, err := rec.Undo([]byte("<beans>")); err == nil {
		t.Error("undoing over ill-formed XML must fail")
	}
}

func TestContainerRefuses(t *testing.T) {
	replace := func(s, old, repl string) string { return strings.Replace(s, old, repl, 1) }
	tests := []struct {
		name, src, want string
		setMode         Mode // "" when parsing already fails
	}{
		{"mixed", replace(replace(standaloneXML, "<!-- cluster start\n", "<!-- cluster start -->\n"), "\tcluster end -->", "\t<!-- cluster end -->"), "line 12: cluster sections disagree", ""},
		{"nested comment in an active section", replace(clusterXML, "\t\t<constructor-arg", "\t\t<!-- ours -->\n\t\t<constructor-arg"), "line 6: a comment inside a cluster section", ModeStandalone},
		{"two dashes in an active section", replace(clusterXML, "${clusterdb.host}", "a--b"), "line 6: `--` inside a cluster section", ModeStandalone},
		{"nested comment in a commented section", replace(standaloneXML, "\t\t<constructor-arg", "\t\t<!-- ours -->\n\t\t<constructor-arg"), "line 6: a comment inside a commented cluster section", ""},
		{"no end", replace(clusterXML, "\t<!-- cluster end -->\n", ""), "line 11: a second cluster start, the section of line 4 has no end yet", ""},
		{"no start", replace(clusterXML, "\t<!-- cluster start -->\n", ""), "line 8: cluster end without a cluster start", ""},
		{"text behind the opening marker", replace(standaloneXML, "<!-- cluster start\n", "<!-- cluster start here\n"), "line 4: text behind the opening marker", ""},
		{"no closing word", replace(standaloneXML, "\tcluster end -->", "\t-->"), "line 4: this cluster section does not end in", ""},
		{"comment never closed", standaloneXML + "<!-- x", "line 31: this comment is never closed", ""},
		{"comment closed by the next one", replace(standaloneXML, "https end -->\n", "https end\n"), "line 24: not well-formed XML", ""},
		{"a commented section in an active one", replace(clusterXML, "\t\t<constructor-arg", "\t\t<!-- cluster start\n\t\tcluster end -->\n\t\t<constructor-arg"), "line 6: a cluster section inside the one of line 4", ""},
		{"prose in an active section", replace(clusterXML, "\t\t<constructor-arg", "\t\t<!-- cluster started -->\n\t\t<constructor-arg"), "line 6: a comment inside a cluster section", ModeStandalone},
		{"a marker without its dashes", replace(standaloneXML, "<!-- cluster start", "<!cluster start"), "line 4: not well-formed XML: a declaration inside an element", ""},
		{"an element never closed", replace(standaloneXML, "</beans>\n", ""), "is never closed", ""},
		{"a second root", standaloneXML + "<beans/>", "line 31: not well-formed XML: a second root element", ""},
		{"a prefix of its own at the end", replace(standaloneXML, "</beans>", "</x:beans>"), "line 30: not well-formed XML", ""},
		{"ill-formed", replace(standaloneXML, "</beans>", "</bean>"), "line 30: not well-formed XML", ""},
		{"not beans", "<html></html>", "line 1: the root element is <html>", ""},
		{"empty", "", "line 1: no", ""},
		{"no sections", `<beans><bean id="tomcat.cluster"/></beans>`, ErrUnmarked.Error(), ModeStandalone},
		{"sections without the cluster bean", replace(standaloneXML, `id="tomcat.cluster"`, `id="other"`), "hold no bean tomcat.cluster", ModeCluster},
		{"two cluster beans in one section", replace(standaloneXML, "\t</bean>\n\n", "\t</bean>\n\t<bean id=\"tomcat.cluster\" class=\"Other\" />\n"), "defined 2 times", ModeCluster},
		{"a cluster bean in two sections", replace(standaloneXML, `id="valve.cluster"`, `id="tomcat.cluster"`), "defined 2 times", ModeCluster},
		{"a cluster bean outside the sections", replace(standaloneXML, "</beans>", `<bean id="tomcat.cluster" /></beans>`), "but bean tomcat.cluster makes it cluster", ""},
		{"sections without the valve", replace(standaloneXML, "HttpLiveStreamValve", "Other"), "HttpLiveStreamValve", ModeCluster},
		{"section content ill-formed", replace(standaloneXML, "</bean>\n\n\tcluster end", "\n\n\tcluster end"), "", ModeCluster},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ParseContainer([]byte(tt.src))
			if tt.setMode != "" {
				must.OK(t, err)
				err = c.SetMode(tt.setMode)
				must.NoDiff(t, "the file after the refusal", string(c.Bytes()), tt.src)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// TestProof: no edit of ours reaches the last proof, that nothing but its sections or beans changed.
func TestProof(t *testing.T) {
	less := strings.Replace(standaloneXML, `<bean id="valve.access" class="`+remoteIPValve+`" />`, "", 1)
	for _, more := range []string{"", "combined"} {
		edit := strings.NewReplacer("a > b", cmp.Or(more, "a > b")).Replace
		want := more == "" // it proves
		if err := proveEdit([]byte(standaloneXML), []byte(edit(clusterXML)), ""); (err == nil) != want {
			t.Errorf("%q: %v", more, err)
		}
		if err := proveEdit([]byte(standaloneXML), []byte(edit(less)), remoteIPValve); (err == nil) != want {
			t.Errorf("%q: %v", more, err)
		}
	}
}

// The forms in which people leave the valve. A leave restores the bytes from before the join.
func TestRemoteIPValveForms(t *testing.T) {
	const (
		valve = `<bean id="valve.access" class="org.apache.catalina.valves.RemoteIpValve" />`
		line  = "\t\t\t\t" + valve + "\n"
		body  = "\t\t\t\t<bean class='org.apache.catalina.valves.RemoteIpValve'>\n\t\t\t\t\t<property name='internalProxies' value='10\\..*' />\n\t\t\t\t</bean>\n"
	)
	for name, form := range map[string]struct{ has, left string }{
		"alone":                    {line, ""},
		"twice":                    {line + line, ""},
		"twice on a line":          {"\t\t\t\t" + valve + valve + "\n", "\t\t\t\t\n"},
		"with a body":              {body, ""},
		"with a body, and again":   {body + line, ""},
		"on a shared line":         {"\t\t\t\t<bean class=\"a.Valve\" />" + valve + "<bean class=\"b.Valve\" />\n", "\t\t\t\t<bean class=\"a.Valve\" /><bean class=\"b.Valve\" />\n"},
		"in a comment":             {"\t\t\t\t<!-- " + valve + " -->\n", "\t\t\t\t<!-- " + valve + " -->\n"},
		"in a comment and outside": {"\t\t\t\t<!-- " + valve + " -->\n" + line, "\t\t\t\t<!-- " + valve + " -->\n"},
	} {
		before := strings.Replace(standaloneXML, line, form.has, 1)
		c := mustContainer(t, before)
		if c.HasRemoteIPValve() != (form.has != form.left) {
			t.Errorf("%s: found %t", name, c.HasRemoteIPValve())
		}
		if err := errors.Join(c.RemoveRemoteIPValve(), c.SetMode(ModeCluster)); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		must.NoDiff(t, name, string(c.Bytes()), strings.Replace(clusterXML, line, form.left, 1))
		rec := recordOf(KindContainer, []byte(before), c)
		u, err := rec.Undo(c.Bytes())
		must.OK(t, err)
		must.NoDiff(t, name+", undone", string(u.Bytes), before)
		u, err = rec.Undo(append(c.Bytes(), '\n'))
		must.OK(t, err)
		must.NoDiff(t, name+", edited since", string(u.Bytes), strings.Replace(standaloneXML, line, form.left, 1)+"\n")
		if form.has == form.left {
			continue
		}
		if len(u.Conflicts) != 1 || strings.Count(u.Conflicts[0].Msg, remoteIPValve) != strings.Count(form.has, remoteIPValve)-strings.Count(form.left, remoteIPValve) {
			t.Errorf("%s: edited since: %v", name, u.Conflicts)
		}
		must.Contain(t, name+": the conflict", fmt.Sprint(u.Conflicts), "put it back by hand: <bean")
	}
}

// TestUndoKeepsTheMode: a commit that found a cluster's file and took out the valve is undone to a cluster's file.
func TestUndoKeepsTheMode(t *testing.T) {
	c := mustContainer(t, clusterXML)
	must.OK(t, c.RemoveRemoteIPValve())
	rec := recordOf(KindContainer, []byte(clusterXML), c)
	edited := strings.Replace(string(c.Bytes()), `value="a > b"`, `value="combined"`, 1)
	if u, err := rec.Undo([]byte(edited)); err != nil || string(u.Bytes) != edited || len(u.Conflicts) != 1 {
		t.Errorf("%v %v, undone to\n%s", err, u.Conflicts, u.Bytes)
	}
	// The operator made it standalone since.
	if u, err := rec.Undo([]byte(standaloneXML)); err != nil || string(u.Bytes) != standaloneXML {
		t.Errorf("%v, undone to\n%s", err, u.Bytes)
	}
}

// TestAttributesWithPrefix: p:id sets a property of the bean, and xml:id is no name for Spring.
func TestAttributesWithPrefix(t *testing.T) {
	c := mustContainer(t, strings.NewReplacer(
		` class="io.antmedia.enterprise.cluster.TcpCluster"`, ` class="a.B" p:id="x" p:class="y"`,
		"</beans>", `<bean xml:id="tomcat.cluster" /></beans>`,
	).Replace(clusterXML))
	must.OK(t, c.SetMode(ModeStandalone))
	d := mustContainer(t, string(c.Bytes()))
	must.OK(t, d.SetMode(ModeCluster))
}

func FuzzContainer(f *testing.F) {
	f.Add([]byte(standaloneXML))
	f.Add([]byte(clusterXML))
	f.Add([]byte("<beans><!-- cluster start\r\n<a/>cluster end --></beans>"))
	f.Add([]byte("<!DOCTYPE a [<!ENTITY b \"c>\">]><beans><![CDATA[<!-- cluster start -->]]></beans>"))
	f.Fuzz(func(t *testing.T, src []byte) {
		c, err := ParseContainer(src)
		if err != nil {
			return
		}
		if !bytes.Equal(c.Bytes(), src) {
			t.Fatalf("%q printed back as %q", src, c.Bytes())
		}
		other := ModeCluster
		if c.Mode() == ModeCluster {
			other = ModeStandalone
		}
		if c.SetMode(other) != nil {
			return
		}
		out := c.Bytes()
		d, err := ParseContainer(out)
		if err != nil || d.Mode() != other {
			t.Fatalf("%q: toggled to %q: %v", src, out, err)
		}
		rec := recordOf(KindContainer, src, c)
		u, err := rec.Undo(out)
		if err != nil || !bytes.Equal(u.Bytes, src) {
			t.Fatalf("%q: undone to %q, %v", src, u.Bytes, err)
		}
		for _, s := range c.Spans() {
			if bytes.ContainsAny(s.Old, "\n\r<") && other == ModeCluster {
				t.Fatalf("span %q is larger than a marker", s.Old)
			}
		}
	})
}
