// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package readback_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/readback"
)

func TestProperties(t *testing.T) {
	java := readback.Start(t)
	for _, tc := range []struct {
		name, file string
		want       map[string]string
	}{
		{"empty", "", map[string]string{}},
		{"separators", "a=1\nb:2\nc 3\n d = 4\ne\nf\t:\t6", map[string]string{"a": "1", "b": "2", "c": "3", "d": "4", "e": "", "f": "6"}},
		{"comments", "#a=1\n!b=2\n  # c=3\nd=#4\n", map[string]string{"d": "#4"}},
		{"last duplicate wins", "a=1\nb=2\na=3\n", map[string]string{"a": "3", "b": "2"}},
		{"escapes", `a\ b\=\:=p\@\\s\s\t\u0041\u00e9` + "\n", map[string]string{"a b=:": "p@\\ss\tAé"}},
		{"beyond the BMP", `a=\ud83d\ude00` + "\n", map[string]string{"a": "😀"}},
		{"trailing_blanks_belong_to_the_value", "a=1  \n", map[string]string{"a": "1  "}},
		{"continued", "a=one\\\n    two\\\r\n\tthree\nb=4", map[string]string{"a": "onetwothree", "b": "4"}},
		{"all line ends", "a=1\rb=2\r\nc=3\n", map[string]string{"a": "1", "b": "2", "c": "3"}},
		{"ISO 8859-1, not UTF-8", "a=\xe9\nb=é\n", map[string]string{"a": "é", "b": "Ã©"}},
		{"BOM is part of the first key", "\xef\xbb\xbfa=1\n", map[string]string{"ï»¿a": "1"}},
		{"quotes and controls", "a=\"\\\\\x01\x7f\"\n", map[string]string{"a": "\"\\\x01\x7f\""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := java.Properties(file(t, "x.properties", tc.file))
			must.OK(t, err)
			must.NoDiff(t, "keys", got, tc.want)
		})
	}
}

func TestPropertiesErrors(t *testing.T) {
	java := readback.Start(t)
	for name, tc := range map[string]struct{ path, want string }{
		"malformed escape": {file(t, "x.properties", `a=\u00g1`), "Malformed"},
		"no such file":     {filepath.Join(t.TempDir(), "none"), "No such file"},
		"folder":           {t.TempDir(), "Is a directory"},
	} {
		_, err := java.Properties(tc.path)
		var said *readback.Error
		if !errors.As(err, &said) || !strings.Contains(said.Message, tc.want) {
			t.Errorf("%s: got %v, want Java to say %q", name, err, tc.want)
		}
	}
	// The process continues after an error.
	if got, err := java.Properties(file(t, "x.properties", "a=1")); err != nil || got["a"] != "1" {
		t.Errorf("after errors: %v, %v", got, err)
	}
}

func TestStoreProperties(t *testing.T) {
	java := readback.Start(t)
	path := file(t, "app é.properties", "# a comment\nb=2\na=1\ndb.host=old\n")
	before, err := os.Stat(path)
	must.OK(t, err)
	want := map[string]string{"a": "1", "b": "2", "db.host": "mongodb://u:p%40ss@h1,h2/?a=b#!", "empty": "", " blank ": " b ", "é": "😀\n"}
	set := maps.Clone(want)
	delete(set, "a")
	delete(set, "b")
	must.OK(t, java.StoreProperties(path, set))
	got, err := java.Properties(path)
	must.OK(t, err)
	must.NoDiff(t, "values", got, want)
	stored, err := os.ReadFile(path)
	must.OK(t, err)
	lines := strings.Split(string(stored), "\n")
	if strings.Contains(string(stored), "a comment") || !strings.HasPrefix(lines[0], "#") {
		t.Errorf("the panel drops comments and begins with a date, but here is:\n%s", stored)
	}
	if escaped := `db.host=mongodb\://u\:p%40ss@h1,h2/?a\=b\#\!`; !slices.Contains(lines, escaped) {
		t.Errorf("there is no line %s in:\n%s", escaped, stored)
	}
	after, err := os.Stat(path)
	must.OK(t, err)
	if !os.SameFile(before, after) {
		t.Error("the panel writes in place, but the file is another one now")
	}
}

func TestResolve(t *testing.T) {
	java := readback.Start(t)
	path := file(t, "red5.properties", "clusterdb.host=mongodb\\://u\\:p%40ss@h1/?a=b\nhttp.port=5080\nindirect=${http.port}\n")
	for text, want := range map[string]string{
		"${clusterdb.host}":                  "mongodb://u:p%40ss@h1/?a=b",
		"0.0.0.0:${http.port}":               "0.0.0.0:5080",
		"${http.upgradeHttp2Protocol:true}":  "true",
		"${indirect}":                        "5080", // a placeholder in a value is resolved too
		"nothing to do: $ { } % \\ #{1 + 1}": "nothing to do: $ { } % \\ #{1 + 1}",
	} {
		if got, err := java.Resolve(path, text); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", text, got, err, want)
		}
	}
	if got, err := java.Resolve(path, "${missing}"); err == nil {
		t.Errorf("a placeholder without a value became %q", got)
	}
}

const header = `<?xml version="1.0" encoding="UTF-8"?>
<beans xmlns="http://www.springframework.org/schema/beans"
	xmlns:context="http://www.springframework.org/schema/context"
	xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
	xsi:schemaLocation="http://www.springframework.org/schema/beans http://www.springframework.org/schema/beans/spring-beans.xsd
	http://www.springframework.org/schema/context http://www.springframework.org/schema/context/spring-context.xsd">
`

func TestBeans(t *testing.T) {
	java := readback.Start(t)
	got, err := java.Beans(file(t, "jee.xml", header+`
	<bean id="one" name="uno,eins" class="com.example.One" depends-on="two, three" lazy-init="true" init-method="up" destroy-method="down">
		<constructor-arg value="${clusterdb.host}" />
		<constructor-arg index="1" type="java.lang.String"><value>é &amp; 😀</value></constructor-arg>
		<property name="store">
			<bean class="com.example.Store"><constructor-arg ref="two" /></bean>
		</property>
		<property name="valves">
			<list>
				<bean id="v" class="com.example.V1" />
				<!-- <bean id="w" class="com.example.W" /> -->
				<bean id="v" class="com.example.V2"><property name="on" value="true" /></bean>
				<null />
				<idref bean="two" />
			</list>
		</property>
		<property name="map"><map><entry key="k" value="v" /><entry key="e" value="" /></map></property>
		<property name="props"><props><prop key="p">q</prop></props></property>
		<property name="set"><set><value>s</value></set></property>
	</bean>
	<bean id="two" class="com.example.Two" abstract="true" />
	<bean id="three" parent="two" factory-bean="one" factory-method="make" scope="prototype" />
	<bean class="com.example.Nameless" />
</beans>`))
	must.OK(t, err)
	text := func(s string) readback.Value { return readback.Value{Kind: "text", Text: s} }
	want := readback.Beans{
		{
			Name: "one", Aliases: []string{"eins", "uno"}, Class: "com.example.One", Lazy: true,
			InitMethod: "up", DestroyMethod: "down", DependsOn: []string{"three", "two"},
			Args: []readback.Arg{
				{Index: 1, Type: "java.lang.String", Value: text("é & 😀")},
				{Index: -1, Value: text("${clusterdb.host}")},
			},
			Properties: []readback.Property{
				{Name: "store", Value: readback.Value{Kind: "bean", Bean: &readback.Bean{
					Class: "com.example.Store",
					Args:  []readback.Arg{{Index: -1, Value: readback.Value{Kind: "ref", Ref: "two"}}},
				}}},
				{Name: "valves", Value: readback.Value{Kind: "list", List: []readback.Value{
					{Kind: "bean", Bean: &readback.Bean{Name: "v", Class: "com.example.V1"}},
					{Kind: "bean", Bean: &readback.Bean{Name: "v", Class: "com.example.V2", Properties: []readback.Property{{Name: "on", Value: text("true")}}}},
					{Kind: "null"},
					{Kind: "idref", IDRef: "two"},
				}}},
				{Name: "map", Value: readback.Value{Kind: "map", Map: []readback.Entry{{Key: text("k"), Value: text("v")}, {Key: text("e"), Value: text("")}}}},
				{Name: "props", Value: readback.Value{Kind: "map", Map: []readback.Entry{{Key: text("p"), Value: text("q")}}}},
				{Name: "set", Value: readback.Value{Kind: "set", List: []readback.Value{text("s")}}},
			},
		},
		{Name: "two", Class: "com.example.Two", Abstract: true},
		{Name: "three", Parent: "two", Scope: "prototype", FactoryBean: "one", FactoryMethod: "make"},
		{Name: "com.example.Nameless#0", Class: "com.example.Nameless", Aliases: []string{"com.example.Nameless"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("-want +got:\n%s", diff)
	}

	wantClasses := []string{
		"com.example.One", "com.example.Store", "com.example.V1", "com.example.V2", "com.example.Two", "", "com.example.Nameless",
	}
	must.NoDiff(t, "classes", got.Classes(), wantClasses)
	if v := got.Lookup("v"); v == nil || v.Class != "com.example.V1" {
		t.Errorf("the first inner bean v is %v", v)
	}
	must.Equal(t, "a bean in a comment was found", got.Lookup("w"), nil)
	if on, ok := got.Lookup("one").Property("set"); !ok || on.Kind != "set" {
		t.Errorf("property set of one is %v, %v", on, ok)
	}
	if _, ok := got.Lookup("one").Property("none"); ok {
		t.Error("a property that is not there was found")
	}
}

func TestBeansErrors(t *testing.T) {
	java := readback.Start(t)
	for _, tc := range []struct {
		name, xml, want string
		line            int
	}{
		{"not XML", "hello", "not allowed in prolog", 1},
		{"unclosed element", header + "<bean id=\"a\" class=\"A\">\n</beans>", "\"bean\" must end with", 8},
		{"two hyphens in a comment", header + "<!-- a\n -- b -->\n</beans>", "\"--\"", 8},
		{"nested comment", header + "<!-- a\n <!-- b -->\n -->\n</beans>", "\"--\"", 8},
		{"text between beans", header + "\ncluster end -->\n</beans>", "cannot have character", 9},
		{"duplicate id", header + "<bean id=\"a\" class=\"A\" />\n<bean id=\"a\" class=\"B\" />\n</beans>", "'a' is already used", 0},
		{"unknown element", header + "\n<bane />\n</beans>", "bane", 8},
		{"unknown attribute", header + "\n<bean klass=\"A\" />\n</beans>", "klass", 8},
		{"a schema from the network", strings.Replace(header, "spring-beans.xsd", "spring-beans-99.xsd", 1) + "</beans>", "nothing is fetched", 0},
		{"a DTD from the network", "<!DOCTYPE beans SYSTEM \"http://127.0.0.1:1/x.dtd\">\n<beans/>", "nothing is fetched", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			beans, err := java.Beans(file(t, "jee.xml", tc.xml))
			var said *readback.Error
			if !errors.As(err, &said) {
				t.Fatalf("got %v, %v, want an error of Java", beans, err)
			}
			if !strings.Contains(said.Message, tc.want) || tc.line > 0 && said.Line != tc.line {
				t.Errorf("got line %d: %s\nwant line %d: … %s …", said.Line, said.Message, tc.line, tc.want)
			}
		})
	}
}

func TestConcurrent(t *testing.T) {
	java := readback.Start(t)
	var wg sync.WaitGroup
	for i := range 8 {
		value := strings.Repeat("x", i)
		path := file(t, "x.properties", "a="+value)
		wg.Go(func() {
			for range 20 {
				if got, err := java.Properties(path); err != nil || got["a"] != value {
					t.Errorf("got %v, %v, want %q", got, err, value)
				}
			}
		})
	}
	wg.Wait()
}

// TestCorpus reads every file of the released configurations, which are beside a checkout.
func TestCorpus(t *testing.T) {
	corpus := filepath.Join("..", "..", "..", "shared", "corpus", "ams")
	releases, err := os.ReadDir(corpus)
	if err != nil {
		t.Skip("the tier corpus, without its folder ../shared/corpus (docs/testing.md)")
	}
	java := readback.Start(t)
	for _, release := range releases {
		t.Run(release.Name(), func(t *testing.T) {
			conf := filepath.Join(corpus, release.Name(), "conf")
			jees, err := filepath.Glob(filepath.Join(conf, "*.xml"))
			if err != nil || len(jees) == 0 {
				t.Fatalf("no XML in %s: %v", conf, err)
			}
			for _, jee := range jees {
				beans, err := java.Beans(jee)
				if err != nil {
					t.Errorf("%s: %v", jee, err)
					continue
				}
				if beans.Lookup("tomcat.server") == nil {
					t.Errorf("%s has no bean tomcat.server", jee)
				}
				cluster := beans.Lookup("tomcat.cluster") != nil
				must.Equal(t, jee+": bean tomcat.cluster is there", cluster, strings.HasSuffix(jee, "-cluster.xml"))
			}
			red5, err := java.Properties(filepath.Join(conf, "red5.properties"))
			must.OK(t, err)
			if _, ok := red5["clusterdb.host"]; !ok {
				t.Errorf("red5.properties has no clusterdb.host")
			}
			apps, err := filepath.Glob(filepath.Join(corpus, release.Name(), "webapps", "*", "WEB-INF", "red5-web.properties"))
			if err != nil || len(apps) == 0 {
				t.Fatalf("no application: %v", err)
			}
			for _, app := range apps {
				values, err := java.Properties(app)
				must.Equal(t, app, err, nil)
				for _, key := range []string{"db.type", "db.host", "db.name"} {
					if _, ok := values[key]; !ok {
						t.Errorf("%s has no %s", app, key)
					}
				}
			}
		})
	}
}

func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must.OK(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}
