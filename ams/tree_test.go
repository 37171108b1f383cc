// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"archive/zip"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// plant writes files below a new directory and returns it. A name that ends in a slash is a folder; contents that begin
// with "-> " are a symbolic link.
func plant(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if name[len(name)-1] == '/' {
			must.OK(t, os.MkdirAll(path, 0o755))
			continue
		}
		must.OK(t, os.MkdirAll(filepath.Dir(path), 0o755))
		var err error
		if len(content) > 3 && content[:3] == "-> " {
			err = os.Symlink(content[3:], path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		must.OK(t, err)
	}
	return root
}

const (
	standaloneXML = `<?xml version="1.0" encoding="UTF-8"?>
<beans xmlns="http://www.springframework.org/schema/beans">
	<!-- cluster start
	<bean id="tomcat.cluster" class="io.antmedia.enterprise.cluster.TcpCluster"/>
	cluster end -->
</beans>
`
	clusterXML = `<?xml version="1.0" encoding="UTF-8"?>
<beans xmlns="http://www.springframework.org/schema/beans">
	<!-- cluster start -->
	<bean id="tomcat.cluster" class="io.antmedia.enterprise.cluster.TcpCluster"/>
	<!-- cluster end -->
</beans>
`
	serverProperties = "http.host=0.0.0.0\nhttp.port=5080\nuseGlobalIp=false\nnodeGroup=default\n"
)

func appProperties(name string) string { return "appName=" + name + "\ndb.name=" + name + "db\n" }

// jar is a jar with these members.
func jar(t *testing.T, members map[string]string) string {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, content := range members {
		w, err := z.Create(name)
		must.OK(t, err)
		_, err = w.Write([]byte(content))
		must.OK(t, err)
	}
	must.OK(t, z.Close())
	return b.String()
}

const manifestName = "META-INF/MANIFEST.MF"

// tree is an installation in its usual place, with changes: a value of "-" omits the file.
func tree(t *testing.T, changes map[string]string) string {
	t.Helper()
	files := map[string]string{
		"usr/local/antmedia/conf/jee-container.xml":                          standaloneXML,
		"usr/local/antmedia/conf/red5.properties":                            serverProperties,
		"usr/local/antmedia/webapps/root/WEB-INF/red5-web.properties":        appProperties("console"),
		"usr/local/antmedia/webapps/LiveApp/WEB-INF/red5-web.properties":     appProperties("live"),
		"usr/local/antmedia/webapps/My App/WEB-INF/red5-web.properties":      appProperties("my"),
		"usr/local/antmedia/webapps/canlı-yayın/WEB-INF/red5-web.properties": appProperties("yayin"),
		"usr/local/antmedia/webapps/LiveApp.war":                             "PK",
		"usr/local/antmedia/ant-media-server.jar":                            jar(t, map[string]string{manifestName: "Implementation-Version: 3.0.3\r\n\r\n"}),
	}
	for name, content := range changes {
		name = filepath.Join("usr/local/antmedia", name) + map[bool]string{true: "/"}[name[len(name)-1] == '/']
		if content == "-" {
			delete(files, name)
		} else {
			files[name] = content
		}
	}
	return plant(t, files)
}
