// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"cmp"
	"errors"
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

func TestContainerToggles(t *testing.T) {
	c := mustContainer(t, standaloneXML)
	if c.Mode() != ModeStandalone || !c.Marked() {
		t.Fatalf("mode %s, marked %v", c.Mode(), c.Marked())
	}
	must.OK(t, c.SetMode(ModeCluster))
	if got := string(c.Bytes()); got != clusterXML {
		t.Errorf("cluster form:\n%s", got)
	}
	d := mustContainer(t, clusterXML)
	if d.Mode() != ModeCluster {
		t.Fatalf("mode %s", d.Mode())
	}
	must.OK(t, d.SetMode(ModeStandalone))
	if got := string(d.Bytes()); got != standaloneXML {
		t.Errorf("standalone form:\n%s", got)
	}
}

func TestContainerCRLF(t *testing.T) {
	crlf := func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
	c := mustContainer(t, "\ufeff"+crlf(standaloneXML))
	must.OK(t, c.SetMode(ModeCluster))
	if got, want := string(c.Bytes()), "\ufeff"+crlf(clusterXML); got != want {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

// TestContainerVendorDrift: the vendor's script leaves one more blank behind
// the opening marker on every run (facts, defect 8).
func TestContainerVendorDrift(t *testing.T) {
	drifted := strings.ReplaceAll(standaloneXML, "<!-- cluster start\n", "<!-- cluster start   \n")
	c := mustContainer(t, drifted)
	if c.Mode() != ModeStandalone {
		t.Fatalf("mode %s", c.Mode())
	}
	must.OK(t, c.SetMode(ModeCluster))
	if got := string(c.Bytes()); got != clusterXML {
		t.Errorf("cluster form of a drifted file:\n%s", got)
	}
	rec := recordOf(t, KindContainer, []byte(drifted), c)
	u, err := rec.Undo(c.Bytes())
	if err != nil || string(u.Bytes) != drifted {
		t.Errorf("undone to %q, %v", u.Bytes, err)
	}
	// The script's form of that file in cluster mode, without a record.
	script := strings.ReplaceAll(clusterXML, "<!-- cluster start -->\n", "<!-- cluster start -->  \n")
	d := mustContainer(t, script)
	must.OK(t, d.SetMode(ModeStandalone))
	if got := string(d.Bytes()); got != standaloneXML {
		t.Errorf("clean standalone form:\n%s", got)
	}
}

func TestContainerRefuses(t *testing.T) {
	replace := func(s, old, repl string, n int) string { return strings.Replace(s, old, repl, n) }
	tests := []struct {
		name, src, want string
		setMode         Mode // "" when parsing already fails
	}{
		{"mixed", replace(replace(standaloneXML, "<!-- cluster start\n", "<!-- cluster start -->\n", 1), "\tcluster end -->", "\t<!-- cluster end -->", 1), "line 12: cluster sections disagree", ""},
		{"nested comment in an active section", replace(clusterXML, "\t\t<constructor-arg", "\t\t<!-- ours -->\n\t\t<constructor-arg", 1), "line 6: a comment inside a cluster section", ModeStandalone},
		{"two dashes in an active section", replace(clusterXML, "${clusterdb.host}", "a--b", 1), "line 6: `--` inside a cluster section", ModeStandalone},
		{"nested comment in a commented section", replace(standaloneXML, "\t\t<constructor-arg", "\t\t<!-- ours -->\n\t\t<constructor-arg", 1), "line 6: a comment inside a commented cluster section", ""},
		{"no end", replace(clusterXML, "\t<!-- cluster end -->\n", "", 1), "line 11: a second cluster start, the section of line 4 has no end yet", ""},
		{"no start", replace(clusterXML, "\t<!-- cluster start -->\n", "", 1), "line 8: cluster end without a cluster start", ""},
		{"text behind the opening marker", replace(standaloneXML, "<!-- cluster start\n", "<!-- cluster start here\n", 1), "line 4: text behind the opening marker", ""},
		{"no closing word", replace(standaloneXML, "\tcluster end -->", "\t-->", 1), "line 4: this cluster section does not end in", ""},
		{"comment never closed", standaloneXML + "<!-- x", "line 31: this comment is never closed", ""},
		{"comment closed by the next one", replace(standaloneXML, "https end -->\n", "https end\n", 1), "line 24: not well-formed XML", ""},
		{"a commented section in an active one", replace(clusterXML, "\t\t<constructor-arg", "\t\t<!-- cluster start\n\t\tcluster end -->\n\t\t<constructor-arg", 1), "line 6: a cluster section inside the one of line 4", ""},
		{"prose in an active section", replace(clusterXML, "\t\t<constructor-arg", "\t\t<!-- cluster started -->\n\t\t<constructor-arg", 1), "line 6: a comment inside a cluster section", ModeStandalone},
		{"a marker without its dashes", replace(standaloneXML, "<!-- cluster start", "<!cluster start", 1), "line 4: not well-formed XML: a declaration inside an element", ""},
		{"an element never closed", replace(standaloneXML, "</beans>\n", "", 1), "is never closed", ""},
		{"a second root", standaloneXML + "<beans/>", "line 31: not well-formed XML: a second root element", ""},
		{"a prefix of its own at the end", replace(standaloneXML, "</beans>", "</x:beans>", 1), "line 30: not well-formed XML", ""},
		{"ill-formed", replace(standaloneXML, "</beans>", "</bean>", 1), "line 30: not well-formed XML", ""},
		{"not beans", "<html></html>", "line 1: the root element is <html>", ""},
		{"empty", "", "line 1: no", ""},
		{"sections without the cluster bean", strings.ReplaceAll(replace(standaloneXML, `id="tomcat.cluster"`, `id="other"`, 1), "xx", ""), "hold no bean tomcat.cluster", ModeCluster},
		{"two cluster beans in one section", replace(standaloneXML, "\t</bean>\n\n", "\t</bean>\n\t<bean id=\"tomcat.cluster\" class=\"Other\" />\n", 1), "defined 2 times", ModeCluster},
		{"a cluster bean in two sections", replace(standaloneXML, `id="valve.cluster"`, `id="tomcat.cluster"`, 1), "defined 2 times", ModeCluster},
		{"a cluster bean outside the sections", replace(standaloneXML, "</beans>", `<bean id="tomcat.cluster" /></beans>`, 1), "but bean tomcat.cluster makes it cluster", ""},
		{"sections without the valve", replace(standaloneXML, "HttpLiveStreamValve", "Other", 1), "HttpLiveStreamValve", ModeCluster},
		{"section content ill-formed", replace(standaloneXML, "</bean>\n\n\tcluster end", "\n\n\tcluster end", 1), "", ModeCluster},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ParseContainer([]byte(tt.src))
			if tt.setMode != "" {
				must.OK(t, err)
				err = c.SetMode(tt.setMode)
				if got := c.Bytes(); !bytes.Equal(got, []byte(tt.src)) {
					t.Errorf("refused, yet changed the file")
				}
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

func TestContainerUnmarked(t *testing.T) {
	c := mustContainer(t, `<beans><bean id="tomcat.cluster"/></beans>`)
	if c.Marked() || c.Mode() != ModeCluster {
		t.Errorf("marked %v, mode %s", c.Marked(), c.Mode())
	}
	if err := c.SetMode(ModeStandalone); !errors.Is(err, ErrUnmarked) {
		t.Errorf("SetMode = %v, want ErrUnmarked", err)
	}
}

func TestRemoteIPValve(t *testing.T) {
	c := mustContainer(t, standaloneXML)
	if !c.HasRemoteIPValve() {
		t.Fatal("valve not found")
	}
	must.OK(t, c.RemoveRemoteIPValve())
	must.OK(t, c.SetMode(ModeCluster))
	line := "\t\t\t\t<bean id=\"valve.access\" class=\"org.apache.catalina.valves.RemoteIpValve\" />\n"
	if got, want := string(c.Bytes()), strings.Replace(clusterXML, line, "", 1); got != want {
		t.Errorf("got\n%s", got)
	}
	rec := recordOf(t, KindContainer, []byte(standaloneXML), c)
	edited := strings.Replace(string(c.Bytes()), `value="a > b"`, `value="combined"`, 1)
	u, err := rec.Undo([]byte(edited))
	if err != nil || len(u.Conflicts) != 1 || !strings.Contains(u.Conflicts[0].Msg, "put it back by hand: <bean id") {
		t.Fatalf("%v %v", err, u.Conflicts)
	}
	want := strings.NewReplacer(`value="a > b"`, `value="combined"`, line, "").Replace(standaloneXML)
	if string(u.Bytes) != want {
		t.Errorf("after an edit elsewhere, undone to\n%s", u.Bytes)
	}

	commented := mustContainer(t, strings.Replace(standaloneXML, line, "<!--"+line+"-->", 1))
	if commented.HasRemoteIPValve() {
		t.Error("a valve in a comment is no valve")
	}
	if err := commented.RemoveRemoteIPValve(); err != nil || len(commented.Spans()) != 0 {
		t.Errorf("removed a valve from a comment: %v", err)
	}
	long := strings.Replace(standaloneXML, line, strings.Replace(line, " />", "><property name='x'><bean class='y'/></property></bean>", 1), 1)
	c = mustContainer(t, long)
	must.OK(t, c.RemoveRemoteIPValve())
	if got, want := string(c.Bytes()), strings.Replace(standaloneXML, line, "", 1); got != want {
		t.Errorf("element with children: got\n%s", got)
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
		if want := strings.Replace(clusterXML, line, form.left, 1); string(c.Bytes()) != want {
			t.Errorf("%s: got\n%s", name, c.Bytes())
		}
		rec := recordOf(t, KindContainer, []byte(before), c)
		if u, err := rec.Undo(c.Bytes()); err != nil || string(u.Bytes) != before {
			t.Errorf("%s: %v, undone to\n%s", name, err, u.Bytes)
		}
		if form.has == form.left {
			continue
		}
		u, err := rec.Undo(append(c.Bytes(), '\n'))
		if err != nil || len(u.Conflicts) != 1 || strings.Count(u.Conflicts[0].Msg, remoteIPValve) != strings.Count(form.has, remoteIPValve)-strings.Count(form.left, remoteIPValve) {
			t.Errorf("%s: edited since: %v, %v", name, u.Conflicts, err)
		}
	}
}

// A person switches https off after the join: a leave keeps that.
func TestUndoKeepsHTTPSOff(t *testing.T) {
	on := strings.NewReplacer("<!-- https start\n", "<!-- https start -->\n", "\thttps end -->", "\t<!-- https end -->").Replace(standaloneXML)
	c := mustContainer(t, on)
	must.OK(t, c.SetMode(ModeCluster))
	rec := recordOf(t, KindContainer, []byte(on), c)
	off := strings.NewReplacer("<!-- https start -->", "<!-- https start", "<!-- https end -->", "https end -->")
	if u, err := rec.Undo([]byte(off.Replace(string(c.Bytes())))); err != nil || string(u.Bytes) != standaloneXML {
		t.Errorf("https switched off after the join: %v, undone to\n%s", err, u.Bytes)
	}
}

// TestUndoKeepsTheMode: a commit that found a cluster's file and took out the valve is undone to a cluster's file.
func TestUndoKeepsTheMode(t *testing.T) {
	c := mustContainer(t, clusterXML)
	must.OK(t, c.RemoveRemoteIPValve())
	rec := recordOf(t, KindContainer, []byte(clusterXML), c)
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

func TestContainerUndoDrift(t *testing.T) {
	c := mustContainer(t, standaloneXML)
	must.OK(t, c.SetMode(ModeCluster))
	rec := recordOf(t, KindContainer, []byte(standaloneXML), c)
	// The vendor's script ran over it: whitespace behind the markers.
	drifted := strings.ReplaceAll(clusterXML, "<!-- cluster start -->\n", "<!-- cluster start --> \n")
	u, err := rec.Undo([]byte(drifted))
	must.OK(t, err)
	if string(u.Bytes) != standaloneXML || len(u.Conflicts) > 0 {
		t.Errorf("conflicts %v, undone to\n%s", u.Conflicts, u.Bytes)
	}
	if _, err := rec.Undo([]byte("<beans>")); err == nil {
		t.Error("undoing over ill-formed XML must fail")
	}
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
		rec := recordOf(t, KindContainer, src, c)
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
