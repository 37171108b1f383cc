// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/must"
)

func appNames(in *Installation) []string {
	names := []string{}
	for _, a := range in.Apps {
		names = append(names, a.Name)
	}
	return names
}

func warnings(ws []Warning) []string {
	var ids []string
	for _, w := range ws {
		ids = append(ids, w.ID)
	}
	return ids
}

func TestOpen(t *testing.T) {
	root := tree(t, nil)
	in, err := Open(root, "")
	must.OK(t, err)
	must.NoDiff(t, "apps", appNames(in), []string{"LiveApp", "My App", "canlı-yayın", "root"})
	for _, a := range in.Apps {
		if a.Err != nil || a.DBName == "" || a.Console() != (a.Name == "root") {
			t.Errorf("app %+v", a)
		}
		if want := "/usr/local/antmedia/webapps/" + a.Name + "/WEB-INF/red5-web.properties"; a.File.Path != want || a.File.Real != root+want {
			t.Errorf("file of %s = %+v", a.Name, a.File)
		}
	}
	if mode, err := in.Mode(); err != nil || mode != conf.ModeStandalone {
		t.Errorf("Mode = %v, %v", mode, err)
	}
	if in.Ports.HTTP != 5080 || in.BaseURL() != "http://127.0.0.1:5080" {
		t.Errorf("%+v", in)
	}
	must.NoDiff(t, "release", in.Release, Release{Version: "3.0.3"})
	must.Equal(t, fmt.Sprintf("number of warnings in %v", in.Warnings), len(in.Warnings), 0)
	if in.Root != root || in.Dir != DefaultDir {
		t.Errorf("Root %q, Dir %q", in.Root, in.Dir)
	}
}

func TestOpenServerSettings(t *testing.T) {
	for _, c := range []struct {
		name, properties, base string
		warn                   []string
	}{
		{"defaults", "", "http://127.0.0.1:5080", nil},
		{"java spelling", "http.port : 8\\\n  080 \nhttp.host = \\u0031\\u0030.0.0.5\n", "http://10.0.0.5:8080", nil},
		{"the last one wins", "http.port=1\nhttp.port=5081\n", "http://127.0.0.1:5081", nil},
		{"IPv6 of everything", "http.host=::\n", "http://127.0.0.1:5080", nil},
		{"one IPv6 address", "http.host=fd00::5\n", "http://[fd00::5]:5080", nil},
		{"no number", "http.port=many\n", "http://127.0.0.1:5080", []string{WarnHTTPPort}},
		{"a variable", "http.port=${port}\n", "http://127.0.0.1:5080", []string{WarnHTTPPort}},
		{"a variable with a default", "http.port=${PORT:8080}\n", "http://127.0.0.1:8080", []string{WarnHTTPPort}},
		{"a default that is no port", "http.port=${PORT:many}\n", "http://127.0.0.1:5080", []string{WarnHTTPPort}},
		{"variables in variables", "http.port=${PORT:${HTTP_PORT:8080}}\n", "http://127.0.0.1:5080", []string{WarnHTTPPort}},
		{"another key", "http.port = ${http.port.default}\nhttp.port.default = 8080\nhttp.host=${h:10.0.0.5}\n", "http://10.0.0.5:5080", []string{WarnHTTPPort}},
		{"no end", "http.port=${PORT:8080\n", "http://127.0.0.1:5080", []string{WarnHTTPPort}},
		{"too large", "http.port=65536\n", "http://127.0.0.1:5080", []string{WarnHTTPPort}},
		{"malformed", "http.port=5081\nx=\\u00g0\n", "http://127.0.0.1:5080", []string{WarnServerSyntax}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, err := Open(tree(t, map[string]string{"conf/red5.properties": c.properties}), "")
			must.OK(t, err)
			must.Equal(t, "BaseURL", in.BaseURL(), c.base)
			must.NoDiff(t, "warnings", warnings(in.Warnings), c.warn)
		})
	}
}

func TestOpenMode(t *testing.T) {
	in, err := Open(tree(t, map[string]string{"conf/jee-container.xml": clusterXML}), "")
	must.OK(t, err)
	if mode, err := in.Mode(); err != nil || mode != conf.ModeCluster {
		t.Errorf("Mode = %v, %v", mode, err)
	}
	// A tree with a broken file can still be opened.
	for name, broken := range map[string]string{
		"ill-formed": "<beans>\n<bean>\n</beans>\n",
		"half open":  strings.Replace(clusterXML, "<!-- cluster end -->", "", 1),
	} {
		t.Run(name, func(t *testing.T) {
			in, err := Open(tree(t, map[string]string{"conf/jee-container.xml": broken}), "")
			must.OK(t, err)
			if _, err := in.Mode(); err == nil || !strings.Contains(err.Error(), "jee-container.xml") {
				t.Errorf("Mode: %v", err)
			}
		})
	}
}

func TestOpenApps(t *testing.T) {
	root := tree(t, map[string]string{
		"webapps/incomplete/WEB-INF/web.xml": "<web-app/>",
		"webapps/lost+found/":                "",
		"webapps/.snapshot/":                 "",
		"webapps/README":                     "a plain file",
		"webapps/nowhere":                    "-> /does/not/exist",
		"webapps/loop":                       "-> loop",
		"webapps/file-link":                  "-> README",
		"webapps/linked":                     "-> /srv/apps/linked",
		"webapps/climbing":                   "-> ../../../../../../../../srv/apps/climbing",
		"webapps/again":                      "-> LiveApp",
		"webapps/bad\nname/WEB-INF/red5-web.properties": "db.name=bad\n",
		"webapps/caf\xe9/WEB-INF/red5-web.properties":   "db.name=caf\n",
		"webapps/latin": "-> /srv/apps/latin\xe9",
		"webapps/malformed/WEB-INF/red5-web.properties":           "db.name=\\u12\n",
		"webapps/no-db/WEB-INF/red5-web.properties":               "",
		"webapps/folder/WEB-INF/red5-web.properties/":             "",
		"../../../srv/apps/linked/WEB-INF/red5-web.properties":    "db.name=linked\n",
		"../../../srv/apps/climbing/WEB-INF/red5-web.properties":  "db.name=climbing\n",
		"../../../srv/apps/latin\xe9/WEB-INF/red5-web.properties": "db.name=latin\n",
	})
	must.OK(t, syscall.Mkfifo(filepath.Join(root, "usr/local/antmedia/webapps/pipe"), 0o600))
	in, err := Open(root, "/usr/local/antmedia/")
	must.OK(t, err)
	want := []string{"LiveApp", "My App", "again", "bad\nname", "canlı-yayın", "climbing", "folder", "linked", "malformed", "no-db", "root"}
	must.NoDiff(t, "apps", appNames(in), want)
	wantWarnings := []string{WarnAppEncoding, WarnAppIncomplete, WarnAppEncoding, WarnAppIncomplete, WarnAppIncomplete, WarnAppIncomplete}
	must.NoDiff(t, fmt.Sprintf("warnings\n%v", in.Warnings), warnings(in.Warnings), wantWarnings)
	for _, w := range in.Warnings {
		if strings.Contains(w.Text, "\n") {
			t.Errorf("a warning of two lines: %q", w.Text)
		}
	}
	apps := map[string]App{}
	for _, a := range in.Apps {
		apps[a.Name] = a
		if a.File.Real != "" && !strings.HasPrefix(a.File.Real, root+"/") {
			t.Errorf("%s is outside the root: %s", a.Name, a.File.Real)
		}
	}
	if a := apps["linked"]; a.DBName != "linked" || a.File.Real != filepath.Join(root, "srv/apps/linked", "WEB-INF/red5-web.properties") {
		t.Errorf("linked: %+v", a)
	}
	if a := apps["climbing"]; a.DBName != "climbing" {
		t.Errorf("climbing: %+v", a)
	}
	must.Equal(t, "the file of again", apps["again"].File.Real, apps["LiveApp"].File.Real)
	var syntax *conf.SyntaxError
	if a := apps["malformed"]; !errors.As(a.Err, &syntax) || says(a.Err, "unreadable: ") {
		t.Errorf("malformed: %v", a.Err)
	}
	if a := apps["folder"]; !says(a.Err, "unreadable: ") {
		t.Errorf("folder: %v", a.Err)
	}
	if a := apps["no-db"]; a.Err != nil || a.DBName != "" {
		t.Errorf("no-db: %+v", a)
	}
	again, err := Open(root, "")
	if err != nil || !slices.Equal(appNames(again), appNames(in)) {
		t.Errorf("another order: %v, %v", appNames(again), err)
	}
}

// The whole installation may be behind absolute links, as below an image's root.
func TestOpenLinkedTree(t *testing.T) {
	root := tree(t, map[string]string{"../antmedia-link": "-> /usr/local/antmedia"})
	must.OK(t, os.Rename(filepath.Join(root, "usr/local/antmedia/conf"), filepath.Join(root, "etc-antmedia")))
	must.OK(t, os.Symlink("/etc-antmedia", filepath.Join(root, "usr/local/antmedia/conf")))
	in, err := Open(root, "/usr/local/antmedia-link")
	must.OK(t, err)
	must.Equal(t, "server file at", in.Server.Real, filepath.Join(root, "etc-antmedia/red5.properties"))
	if len(in.Apps) != 4 || in.Dir != "/usr/local/antmedia-link" {
		t.Errorf("%+v", in)
	}
}

// Without another root a relative directory depends on the working directory.
func TestOpenRelative(t *testing.T) {
	root := tree(t, nil)
	t.Chdir(filepath.Join(root, "usr"))
	in, err := Open("", "local/antmedia")
	must.OK(t, err)
	if want := filepath.Join(root, DefaultDir); in.Dir != want || in.Server.Path != filepath.Join(want, "conf/red5.properties") {
		t.Errorf("Dir %s, server %+v", in.Dir, in.Server)
	}
	if _, err := Open("..", ""); err != nil {
		t.Errorf("a relative root: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	withoutApps := map[string]string{
		"webapps/root/WEB-INF/red5-web.properties": "-", "webapps/LiveApp/WEB-INF/red5-web.properties": "-", "webapps/LiveApp.war": "-",
		"webapps/My App/WEB-INF/red5-web.properties": "-", "webapps/canlı-yayın/WEB-INF/red5-web.properties": "-",
	}
	nothing, aFile := maps.Clone(withoutApps), maps.Clone(withoutApps)
	nothing["conf/jee-container.xml"], nothing["conf/red5.properties"] = "-", "-"
	aFile["webapps"] = "x"
	tooLarge := tree(t, nil)
	must.OK(t, os.Truncate(filepath.Join(tooLarge, DefaultDir, "conf/red5.properties"), conf.MaxSettings+1))
	const noTree = "/usr/local/antmedia is not an Ant Media Server tree: "
	for name, c := range map[string]struct{ root, want string }{
		"no directory":        {plant(t, nil), "is not an Ant Media Server tree"},
		"a file in its place": {plant(t, map[string]string{"usr/local/antmedia": "x"}), "is not an Ant Media Server tree"},
		"link loop":           {plant(t, map[string]string{"usr/local/antmedia": "-> antmedia"}), "unreadable: "},
		"no container":        {tree(t, map[string]string{"conf/jee-container.xml": "-"}), noTree + "missing conf/jee-container.xml"},
		"no server":           {tree(t, map[string]string{"conf/red5.properties": "-"}), noTree + "missing conf/red5.properties"},
		"nothing":             {tree(t, nothing), noTree + "missing conf/jee-container.xml, conf/red5.properties, webapps"},
		"webapps is a file":   {tree(t, aFile), noTree + "missing webapps"},
		"too large":           {tooLarge, "unreadable: "},
	} {
		_, err := Open(c.root, "")
		if !says(err, c.want) || !says(err, DefaultDir) || strings.Contains(c.want, "missing") && !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
		if strings.Contains(c.want, "not an Ant") && Hint(err) == "" {
			t.Errorf("%s: no hint", name)
		}
	}
	t.Run("a pipe does not hold us", func(t *testing.T) {
		root := tree(t, map[string]string{"conf/jee-container.xml": "-"})
		must.OK(t, syscall.Mkfifo(filepath.Join(root, DefaultDir, "conf/jee-container.xml"), 0o600))
		if _, err := Open(root, ""); !says(err, "unreadable: ") || !errors.Is(err, files.ErrNotRegular) {
			t.Errorf("%v", err)
		}
	})
	t.Run("a folder for a file", func(t *testing.T) {
		root := tree(t, map[string]string{"conf/red5.properties": "-", "conf/red5.properties/": ""})
		if _, err := Open(root, ""); !says(err, "unreadable: ") || !errors.Is(err, files.ErrNotRegular) {
			t.Errorf("%v", err)
		}
	})
	t.Run("permission", func(t *testing.T) {
		if os.Geteuid() == 0 {
			t.Skip("root reads everything; see the run as another user")
		}
		root := tree(t, nil)
		must.OK(t, os.Chmod(filepath.Join(root, DefaultDir, "conf/jee-container.xml"), 0))
		_, err := Open(root, "")
		if !says(err, "unreadable: ") || !errors.Is(err, fs.ErrPermission) || Hint(err) != "run it with sudo" {
			t.Errorf("%v, hint %q", err, Hint(err))
		}
	})
	t.Run("an unreadable application still counts", func(t *testing.T) {
		if os.Geteuid() == 0 {
			t.Skip("root reads everything; see the run as another user")
		}
		root := tree(t, nil)
		must.OK(t, os.Chmod(filepath.Join(root, DefaultDir, "webapps/LiveApp/WEB-INF"), 0))
		t.Cleanup(func() { _ = os.Chmod(filepath.Join(root, DefaultDir, "webapps/LiveApp/WEB-INF"), 0o755) })
		in, err := Open(root, "")
		if err != nil || len(in.Apps) != 4 || !errors.Is(in.Apps[0].Err, fs.ErrPermission) {
			t.Errorf("%+v, %v", in, err)
		}
	})
}

// Every shipped release is an installation in its default mode, with the same ports, without a token, and with a database for
// each application.
func TestOpenReleases(t *testing.T) {
	trees, err := filepath.Glob("../testdata/trees/*/conf")
	must.OK(t, err)
	corpus, err := filepath.Glob("../../shared/corpus/ams/*/conf")
	must.OK(t, err)
	if len(corpus) == 0 {
		t.Log("without the folder ../shared/corpus (docs/testing.md)")
	}
	for _, dir := range slices.Concat(trees, corpus) {
		dir, err := filepath.Abs(filepath.Dir(dir))
		must.OK(t, err)
		t.Run(filepath.Base(filepath.Dir(dir))+" "+filepath.Base(dir), func(t *testing.T) {
			in, err := Open("", dir)
			must.OK(t, err)
			if mode, err := in.Mode(); err != nil || mode != conf.ModeStandalone {
				// 1.9.0 has no sections; its shipped file is the standalone one.
				t.Errorf("Mode = %q, %v", mode, err)
			}
			if in.ServerErr != nil || in.Ports != shipped || len(in.Apps) < 2 {
				t.Errorf("%+v", in)
			}
			if _, err := in.ServerToken(time.Now()); !says(err, "no token for the server's statistics") {
				t.Errorf("key: %v", err)
			}
			if names, err := in.Databases(); err != nil || len(names) == 0 {
				t.Errorf("databases %q, %v", names, err)
			}
			for _, a := range in.Apps {
				if a.Err != nil || a.DBName == "" && !a.Console() {
					t.Errorf("app %+v", a)
				}
			}
		})
	}
}
