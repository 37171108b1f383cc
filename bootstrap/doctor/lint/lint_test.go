// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

type aText struct {
	name, src string
	// want is the corrected text; "" is the source.
	want string
	// found are ids with their lines, "AMS-LINT-CURL:3"; one that is not corrected ends in "!".
	found []string
}

func userData() []aText {
	return []aText{
		{name: "one line, as it should be", src: "#!/bin/sh\namsagent join --mongo 10.0.2.4\n"},
		{
			"the guide", "#!/bin/bash\ncd /usr/local/antmedia\n./change_server_mode.sh cluster 10.0.2.4\n",
			"#!/bin/bash\ncd /usr/local/antmedia\namsagent join --mongo 10.0.2.4\n",
			[]string{"AMS-LINT-SWITCH:3"},
		},
		{
			"sudo, a path, a variable, and more on the line", "#!/bin/bash\nsudo bash /usr/local/antmedia/change_server_mode.sh cluster \"${MONGO_IP}\" && echo done\n",
			"#!/bin/bash\nsudo amsagent join --mongo \"${MONGO_IP}\" && echo done\n",
			[]string{"AMS-LINT-SWITCH:2"},
		},
		{
			"a name becomes Redis", "#!/bin/sh\n/usr/local/antmedia/change_server_mode.sh cluster db.internal:27017\n",
			"#!/bin/sh\namsagent join --mongo db.internal:27017\n",
			[]string{"AMS-LINT-SWITCH:2"},
		},
		{name: "a URI asks nothing", src: "#!/bin/sh\n./change_server_mode.sh cluster 'mongodb://10.0.2.4/?replicaSet=rs0'\n"},
		{name: "somebody answers", src: "#!/bin/sh\nyes | ./change_server_mode.sh cluster 10.0.2.4\n"},
		{name: "somebody answers from behind", src: "#!/bin/bash\n./change_server_mode.sh cluster 10.0.2.4 <<< y\n"},
		{
			"answered, and Redis all the same", "#!/bin/sh\nyes | ./change_server_mode.sh cluster db.internal\n",
			"#!/bin/sh\nyes | amsagent join --mongo db.internal\n",
			[]string{"AMS-LINT-SWITCH:2"},
		},
		{"the guide's placeholder", "#!/bin/bash\ncd /usr/local/antmedia\n./change_server_mode.sh cluster <MongoIP>\n", "", []string{"AMS-LINT-SWITCH:3!"}},
		{
			"variables, over two lines", "#!/bin/bash\n$AMS_DIR/change_server_mode.sh cluster $MONGODB_HOST $MONGODB_USERNAME $MONGODB_PASSWORD \\\n&& ./start.sh\n",
			"#!/bin/bash\n" + secretComment + "\namsagent join --mongo file:/root/mongo.uri \\\n&& ./start.sh\n",
			[]string{"AMS-LINT-PASSWORD:2", "AMS-LINT-SWITCH:2"},
		},
		{
			"more than the call", "#!/bin/bash\nrm -rf /usr/local/antmedia/*.db\ncd /usr/local/antmedia\n./change_server_mode.sh cluster 10.128.0.5\n",
			"#!/bin/bash\nrm -rf /usr/local/antmedia/*.db\ncd /usr/local/antmedia\namsagent join --mongo 10.128.0.5\n",
			[]string{"AMS-LINT-SWITCH:4"},
		},
		{
			"a restart of what the join has verified",
			"#!/bin/sh\n./change_server_mode.sh cluster 10.0.2.4\n\n# restart\nsudo service antmedia restart\namsagent join --mongo 10.0.2.4 && systemctl restart antmedia.service\nif true; then\n  amsagent join --mongo 10.0.2.4\n  systemctl restart antmedia\nfi\n",
			"#!/bin/sh\namsagent join --mongo 10.0.2.4\n\n# restart\namsagent join --mongo 10.0.2.4\nif true; then\n  amsagent join --mongo 10.0.2.4\nfi\n",
			[]string{"AMS-LINT-SWITCH:2", "AMS-LINT-RESTART:5", "AMS-LINT-RESTART:6", "AMS-LINT-RESTART:9"},
		},
		{
			"the same in YAML", "#cloud-config\nruncmd:\n  - amsagent join --mongo 10.0.2.4\n  - service antmedia restart\n",
			"#cloud-config\nruncmd:\n  - amsagent join --mongo 10.0.2.4\n",
			[]string{"AMS-LINT-RESTART:4"},
		},
		{
			name: "restarts with another cause",
			src: "#!/bin/sh\namsagent join --mongo 10.0.2.4\nsed -i s/a/b/ /usr/local/antmedia/conf/red5.properties\nservice antmedia restart\n" +
				"amsagent join --mongo 10.0.2.4 ||\nservice antmedia restart\nif amsagent join --mongo 10.0.2.4; then\n  service antmedia restart\nfi\n",
		},
		{
			name: "restarts after a join that restarts nothing",
			src: "#!/bin/sh\namsagent join --offline --mongo 10.0.2.4\nsystemctl restart antmedia\namsagent join --service none --mongo 10.0.2.4\nservice antmedia restart\n" +
				"amsagent join --service=none --mongo 10.0.2.4\nservice antmedia restart\namsagent join --dry-run --mongo 10.0.2.4 && systemctl restart antmedia\n" +
				"echo then run amsagent join\nservice antmedia restart\n",
		},
		{name: "standalone, and a comment", src: "#!/bin/sh\n# ./change_server_mode.sh cluster 10.0.2.4\n./change_server_mode.sh standalone\n"},
		{
			"user and password", "#!/bin/sh\n  ./change_server_mode.sh cluster 10.0.2.4 admin 'hunter22'\n",
			"#!/bin/sh\n  " + secretComment + "\n  amsagent join --mongo file:/root/mongo.uri\n",
			[]string{"AMS-LINT-PASSWORD:2", "AMS-LINT-SWITCH:2"},
		},
		{
			"a password for join", "#!/bin/sh\nsleep 1 && \\\n  amsagent join --role edge --mongo 'mongodb://u:hunter22@10.0.2.4/?a=b' --group x\n",
			"#!/bin/sh\n" + secretComment + "\nsleep 1 && \\\n  amsagent join --role edge --mongo file:/root/mongo.uri --group x\n",
			[]string{"AMS-LINT-PASSWORD:3"},
		},
		{
			"a password in a variable", "#!/bin/sh\namsagent join --mongo \"mongodb://u:${PW}@10.0.2.4/\"\n", "", []string{"AMS-LINT-PASSWORD:2!"},
		},
		{
			"curl to a shell", "#!/bin/sh\ncurl -sSL https://x.example/i.sh | sudo bash -s -- -y\ncurl -fsSL https://x.example/i.sh | sh\ncurl -o f https://x.example/f; echo x | sh\n",
			"#!/bin/sh\ncurl -f -sSL https://x.example/i.sh | sudo bash -s -- -y\ncurl -fsSL https://x.example/i.sh | sh\ncurl -o f https://x.example/f; echo x | sh\n",
			[]string{"AMS-LINT-CURL:2"},
		},
		{"no header", "cd /tmp\necho x\n", "#!/bin/sh\ncd /tmp\necho x\n", []string{"AMS-LINT-HEADER:1"}},
		{"no header, bash", "if [[ -f x ]]; then echo x; fi\n", "#!/bin/bash\nif [[ -f x ]]; then echo x; fi\n", []string{"AMS-LINT-HEADER:1"}},
		{"no header, YAML", "packages:\n  - curl\nruncmd:\n  - echo x\n", "#cloud-config\npackages:\n  - curl\nruncmd:\n  - echo x\n", []string{"AMS-LINT-HEADER:1"}},
		{"something before the header", "\ufeff\n  #!/bin/sh\necho x\n", "#!/bin/sh\necho x\n", []string{"AMS-LINT-HEADER:2"}},
		{"Windows", "#!/bin/sh\r\necho x\r\n", "#!/bin/sh\necho x\n", []string{"AMS-LINT-CRLF:0"}},
		{"the first Macs", "#!/bin/sh\recho x\r", "#!/bin/sh\necho x\n", []string{"AMS-LINT-CRLF:0"}},
		{
			"UTF-16", wide("#!/bin/sh\n./change_server_mode.sh cluster 10.0.2.4\n", "\xff\xfe"), "#!/bin/sh\namsagent join --mongo 10.0.2.4\n",
			[]string{"AMS-LINT-ENCODING:0", "AMS-LINT-SWITCH:2"},
		},
		{
			"tabs in YAML", "#cloud-config\nruncmd:\n\t- echo x\n", "#cloud-config\nruncmd:\n  - echo x\n",
			[]string{"AMS-LINT-YAML:3"},
		},
		{name: "a tab in a script in YAML", src: "#cloud-config\nwrite_files:\n  - path: /x\n    content: |\n      a\n      \tb\n"},
		{"no YAML at all", "#cloud-config\nruncmd: [ echo\npackages: x\n", "", []string{"AMS-LINT-YAML:1!"}},
		{
			"Windows and a mark in YAML", "\ufeff#cloud-config\r\nruncmd:\r\n  - ./change_server_mode.sh cluster 10.0.2.4\r\n",
			"#cloud-config\nruncmd:\n  - amsagent join --mongo 10.0.2.4\n",
			[]string{"AMS-LINT-CRLF:0", "AMS-LINT-HEADER:1", "AMS-LINT-SWITCH:3"},
		},
		{"no end", "#!/bin/sh\n./change_server_mode.sh cluster 10.0.2.4", "#!/bin/sh\namsagent join --mongo 10.0.2.4", []string{"AMS-LINT-SWITCH:2"}},
		{name: "multipart", src: "Content-Type: multipart/mixed; boundary=\"x\"\nMIME-Version: 1.0\n\n--x\n"},
		{"empty", "", "", []string{"AMS-LINT-HEADER:0!"}},
		{"blank", "\n \n", "", []string{"AMS-LINT-HEADER:0!"}},
		{
			"secrets", "#!/bin/sh\nexport DB_PASSWORD='hunter22'\nexport AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE\necho mongodb://u:hunter22@db/ >/x\nDB_PASSWORD=$(fetch)\npassword: file:/x\nexport TOKEN=\"$T\"\n",
			"",
			[]string{"AMS-LINT-SECRET:2!", "AMS-LINT-SECRET:3!", "AMS-LINT-SECRET:4!"},
		},
		{
			"secrets of other names", "#!/bin/sh\nexport PGPASS=hunter22\nmyapp --jwt-key=hunter22 --role edge\nOPTIONS=\"pwd=hunter22 x=y\"\nCOMPASS=north\n",
			"",
			[]string{"AMS-LINT-SECRET:2!", "AMS-LINT-SECRET:3!", "AMS-LINT-SECRET:4!"},
		},
		{
			"secrets that are none", "#!/bin/sh\ncat >x.js <<'END'\nconst password = (user) => read(user);\ntoken = key['SecurityToken']\nEND\n" +
				"echo mongodb://amsagent:PASSWORD@$hosts/admin\nprintf 'mongodb://amsagent:%s@%s/admin' \"$p\" \"$h\"\nSECRET_NAME=ams-mongo\nPASSWORD_FILE=mongo.password\n" +
				"PASSWORD='p(ss)word'\necho 'mongodb://u:p(ss)word@db/' >/x\n",
			"",
			[]string{"AMS-LINT-SECRET:10!", "AMS-LINT-SECRET:11!"},
		},
		{
			"cloud-config", "#cloud-config\nruncmd:\n  - cd /usr/local/antmedia && ./change_server_mode.sh cluster 10.0.2.4\n  - [ /usr/local/antmedia/change_server_mode.sh, cluster, 10.0.2.4 ]\n  - [ bash, ./change_server_mode.sh, cluster, \"10.0.2.4\", u, p ]\n",
			"#cloud-config\nruncmd:\n  - cd /usr/local/antmedia && amsagent join --mongo 10.0.2.4\n  - [ amsagent, join, --mongo, \"10.0.2.4\" ]\n  " + secretComment + "\n  - [ amsagent, join, --mongo, \"file:/root/mongo.uri\" ]\n",
			[]string{"AMS-LINT-SWITCH:3", "AMS-LINT-SWITCH:4", "AMS-LINT-PASSWORD:5", "AMS-LINT-SWITCH:5"},
		},
		{
			"MongoDB for everybody", "#!/bin/sh\nsed -i 's/bindIp: 127.0.0.1/bindIp: 0.0.0.0/' /etc/mongod.conf\nsystemctl restart mongod\n",
			"#!/bin/sh\nsed -i 's/bindIp: 127.0.0.1/bindIp: 0.0.0.0/' /etc/mongod.conf\nprintf 'security:\\n  authorization: enabled\\n' >>/etc/mongod.conf\nsystemctl restart mongod\n",
			[]string{"AMS-LINT-MONGOD:2"},
		},
		{
			"MongoDB for everybody, in YAML", "#cloud-config\nruncmd:\n  - sed -i 's/127.0.0.1/0.0.0.0/' /etc/mongod.conf\n",
			"#cloud-config\nruncmd:\n  - sed -i 's/127.0.0.1/0.0.0.0/' /etc/mongod.conf\n  - \"printf 'security:\\\\n  authorization: enabled\\\\n' >>/etc/mongod.conf\"\n",
			[]string{"AMS-LINT-MONGOD:3"},
		},
		{
			"MongoDB for everybody, by sudo", "#!/bin/bash\nsudo sed -i 's/bindIp: 127.0.0.1/bindIp: 0.0.0.0/g' /etc/mongod.conf\nsudo systemctl restart mongod\n",
			"#!/bin/bash\nsudo sed -i 's/bindIp: 127.0.0.1/bindIp: 0.0.0.0/g' /etc/mongod.conf\nprintf 'security:\\n  authorization: enabled\\n' | sudo tee -a /etc/mongod.conf >/dev/null\nsudo systemctl restart mongod\n",
			[]string{"AMS-LINT-MONGOD:2"},
		},
		{name: "MongoDB, closed by the script", src: "#!/bin/bash\nsudo sed -i 's/bindIp: 127.0.0.1/bindIp: 0.0.0.0/g' /etc/mongod.conf\nsudo bash -c \"printf \\\"security:\\n  authorization: 'enabled'\\n\\\" >> /etc/mongod.conf\"\n"},
		{"MongoDB by a flag", "#!/bin/sh\nmongod --bind_ip_all --fork --logpath /x\n", "", []string{"AMS-LINT-MONGOD:2!"}},
		{name: "MongoDB, closed", src: "#!/bin/sh\nmongod --auth --bind_ip_all --fork --logpath /x\n"},
	}
}

// wide is a text as UTF-16, after its mark.
func wide(text, mark string) string {
	b := []byte(mark)
	for _, w := range utf16.Encode([]rune(text)) {
		if mark == "\xff\xfe" {
			b = append(b, byte(w), byte(w>>8))
		} else {
			b = append(b, byte(w>>8), byte(w))
		}
	}
	return string(b)
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What clouds and cloud-init open is opened; what is no text is refused, and nothing swells without end.
func TestOpen(t *testing.T) {
	const script = "#!/bin/sh\n./change_server_mode.sh cluster 10.0.2.4\n"
	coded := base64.StdEncoding.EncodeToString
	parts := func(header, body string) string {
		return "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"x\"\n\n--x\nContent-Type: text/x-shellscript\n" + header + "\n" + body + "--x\nContent-Type: text/plain\n\nno base64\n--x--\n"
	}
	broken := zipped(t, script)
	for _, tt := range []struct {
		name, src, want string
		layers          []string
		err             string
	}{
		{name: "as it is", src: script, want: script},
		{name: "empty", src: "", want: ""},
		{name: "letters of another alphabet", src: "#!/bin/sh\n# gr\xfc\xdfe\n", want: "#!/bin/sh\n# gr\xfc\xdfe\n"},
		{name: "gzip", src: zipped(t, script), want: script, layers: []string{"gzip"}},
		{name: "base64, in lines", src: coded([]byte(script))[:20] + "\n" + coded([]byte(script))[20:] + "\n", want: script, layers: []string{"base64"}},
		{name: "gzip in base64", src: coded([]byte(zipped(t, script))), want: script, layers: []string{"base64", "gzip"}},
		{name: "a mongod.conf in base64", src: coded([]byte("net:\n  bindIp: 0.0.0.0\n")), want: "net:\n  bindIp: 0.0.0.0\n", layers: []string{"base64"}},
		{name: "a word that is base64 by chance", src: "reboot00\n", want: "reboot00\n"},
		{name: "parts", src: parts("", script), want: parts("", script)},
		{
			name: "parts in base64", src: parts("Content-Transfer-Encoding: base64\n", coded([]byte(script))+"\n"),
			want: parts("Content-Transfer-Encoding: 8bit\n", script), layers: []string{"parts in base64"},
		},
		{name: "a part that is no text", src: parts("content-transfer-encoding: BASE64\n", coded([]byte("\x00"))+"\n"), want: parts("content-transfer-encoding: BASE64\n", coded([]byte("\x00"))+"\n")},
		{name: "UTF-16", src: wide(script, "\xff\xfe"), want: wide(script, "\xff\xfe")},
		{name: "a program", src: "\x7fELF\x02\x01\x01\x00", err: "it is no text: there is a byte 0x7f at 0"},
		{name: "a NUL", src: "a\x00b", err: "it is no text: there is a byte 0x00 at 1"},
		{name: "a NUL in UTF-16", src: "\xff\xfea\x00\x00\x00", err: "it is no text"},
		{name: "broken gzip", src: broken[:len(broken)-6], err: "opening gzip"},
		{name: "gzip of a program", src: zipped(t, "\x00"), err: "it is no text"},
		{name: "what swells", src: zipped(t, strings.Repeat("x", maxOpened+1)), err: "more than 1024 KiB"},
	} {
		text, layers, err := Open([]byte(tt.src))
		switch {
		case tt.err != "":
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v", tt.name, err)
			}
		case err != nil || string(text) != tt.want || !slices.Equal(layers, tt.layers):
			t.Errorf("%s: %v, %q, %v", tt.name, err, layers, cmp.Diff(tt.want, string(text)))
		}
	}
}

const haproxyHead = "global\n    maxconn 100\ndefaults\n    mode http\n    timeout connect 5s\n    timeout client 30s\n    timeout server 30s\nfrontend f\n    bind 127.0.0.1:18080\n"

func haproxyTexts() []aText {
	return []aText{
		{name: "fine", src: haproxyHead + "    default_backend b\nbackend b\n    server one 10.0.0.1:5080 check\n    server two 10.0.0.2:5080 check\n"},
		{
			"one node twice", haproxyHead + "    default_backend b\nbackend b\n    server one 10.0.0.1:5080 check\n    server two 10.0.0.1:5080 check\nbackend c\n    server one 10.0.0.1:5080 check\n",
			haproxyHead + "    default_backend b\nbackend b\n    server one 10.0.0.1:5080 check\n    # the address of another node belongs here: 10.0.0.1:5080 is that of line 12\n    #server two 10.0.0.1:5080 check\nbackend c\n    server one 10.0.0.1:5080 check\n",
			[]string{"AMS-LINT-DUPLICATE:13"},
		},
		{
			"UTF-16", wide(haproxyHead+"    default_backend b\nbackend b\n    server one 10.0.0.1:5080 check\n", "\xfe\xff"),
			haproxyHead + "    default_backend b\nbackend b\n    server one 10.0.0.1:5080 check\n",
			[]string{"AMS-LINT-ENCODING:0"},
		},
		{
			"one node twice, named as other things are", haproxyHead + "    default_backend two\nbackend two\n    server one 10.0.0.1:5080 check\n    server two 10.0.0.1:5080 check\n",
			haproxyHead + "    default_backend two\nbackend two\n    server one 10.0.0.1:5080 check\n    # the address of another node belongs here: 10.0.0.1:5080 is that of line 12\n    #server two 10.0.0.1:5080 check\n",
			[]string{"AMS-LINT-DUPLICATE:13"},
		},
		{
			"one node twice, and both have their use", haproxyHead + "    default_backend b\nbackend b\n    use-server two if { path_beg /two }\n    server one 10.0.0.1:5080 check\n    server two 10.0.0.1:5080 check\n",
			"",
			[]string{"AMS-LINT-DUPLICATE:14!"},
		},
		{
			"one node twice, and another server follows the second", haproxyHead + "    default_backend b\nbackend b\n    server three 10.0.0.3:5080 track b/two\n    server one 10.0.0.1:5080 check\n    server two 10.0.0.1:5080 check\n",
			"",
			[]string{"AMS-LINT-DUPLICATE:14!"},
		},
		{
			"one node twice, and a rule asks for the second", haproxyHead + "    default_backend b\nbackend b\n    http-request deny if !{ srv_is_up(b/two) }\n    server one 10.0.0.1:5080 check\n    server two 10.0.0.1:5080 check\n",
			"",
			[]string{"AMS-LINT-DUPLICATE:14!"},
		},
		{
			"what went away", haproxyHead + "    reqadd X-Forwarded-Proto:\\ https\n    reqadd X-Note:\\ two\\ words\\ 50% if { ssl_fc }\n    rspadd Cache-Control:\\ no-store\n    default_backend b\nbackend b\n    server one 10.0.0.1:5080\n",
			haproxyHead + "    http-request set-header X-Forwarded-Proto https\n    http-request set-header X-Note \"two words 50%%\" if { ssl_fc }\n    http-response set-header Cache-Control no-store\n    default_backend b\nbackend b\n    server one 10.0.0.1:5080\n",
			[]string{"AMS-LINT-REQADD:10", "AMS-LINT-REQADD:11", "AMS-LINT-REQADD:12"},
		},
		{
			"what has no plain successor", haproxyHead + "    reqirep ^Host:\\ x Host:\\ y\n    # reqadd X: y\n    default_backend b\nbackend b\n    server one 10.0.0.1:5080\n",
			"",
			[]string{"AMS-LINT-REQADD:10!"},
		},
	}
}

const mongodHead = "storage:\n  dbPath: /var/lib/mongodb\nnet:\n  port: 27017\n"

func mongodTexts() []aText {
	const auth = "security:\n  authorization: enabled\n"
	return []aText{
		{name: "on the loopback", src: mongodHead + "  bindIp: 127.0.0.1\n"},
		{name: "with a password", src: mongodHead + "  bindIp: 0.0.0.0\n" + auth},
		{name: "with a key file", src: mongodHead + "  bindIp: 0.0.0.0\nsecurity:\n  keyFile: /x\n"},
		{"for everybody", mongodHead + "  bindIp: 0.0.0.0\n", mongodHead + "  bindIp: 0.0.0.0\n" + auth, []string{"AMS-LINT-MONGOD:5"}},
		{"with the usual comment", mongodHead + "  bindIp: 127.0.0.1,0.0.0.0  # all\n#security:\n\n#replication:\n", mongodHead + "  bindIp: 127.0.0.1,0.0.0.0  # all\n" + auth + "\n#replication:\n", []string{"AMS-LINT-MONGOD:5"}},
		{"switched off", mongodHead + "  bindIp: \"::,0.0.0.0\"\nsecurity:\n    authorization: disabled\n", mongodHead + "  bindIp: \"::,0.0.0.0\"\nsecurity:\n    authorization: enabled\n", []string{"AMS-LINT-MONGOD:5"}},
		{"something else there", mongodHead + "  bindIpAll: true\nsecurity:\n    javascriptEnabled: false\n", mongodHead + "  bindIpAll: true\nsecurity:\n    authorization: enabled\n    javascriptEnabled: false\n", []string{"AMS-LINT-MONGOD:5"}},
		{"Windows, no end", "net:\r\n  bindIp: 0.0.0.0", "net:\r\n  bindIp: 0.0.0.0\r\nsecurity:\r\n  authorization: enabled", []string{"AMS-LINT-MONGOD:2"}},
		{"tabs", "net:\n\tport: 27017\n\tbindIp: 0.0.0.0\n", "net:\n  port: 27017\n  bindIp: 0.0.0.0\n" + auth, []string{"AMS-LINT-MONGOD:3", "AMS-LINT-YAML:2"}},
		{"no YAML", "net:\n  port: 27017\n bindIp: 127.0.0.1\n", "", []string{"AMS-LINT-YAML:2!"}},
		{"all on one line", "net: {port: 27017, bindIp: \"127.0.0.1,0.0.0.0\"}\n", "", []string{"AMS-LINT-MONGOD:1!"}},
		{"all on one line, and a flag", "storage: {dbPath: /x}\nnet: {bindIpAll: true}\n", "", []string{"AMS-LINT-MONGOD:2!"}},
		{name: "all on one line, closed", src: "net: {bindIp: 0.0.0.0}\nsecurity: {authorization: enabled}\n"},
		{"the old form", "port = 27017\nbind_ip = 0.0.0.0\n", "port = 27017\nbind_ip = 0.0.0.0\nauth = true\n", []string{"AMS-LINT-MONGOD:2"}},
	}
}

func TestCheck(t *testing.T) {
	for kind, texts := range map[Kind][]aText{UserData: userData(), HAProxy: haproxyTexts(), Mongod: mongodTexts()} {
		for _, tt := range texts {
			t.Run(string(kind)+"/"+tt.name, func(t *testing.T) {
				if got := Recognize([]byte(tt.src)); got != kind {
					t.Errorf("taken for %s", got)
				}
				r := Check(kind, []byte(tt.src))
				var found []string
				for _, f := range r.Findings {
					text := fmt.Sprintf("%s:%d", f.ID, f.Line)
					if !f.Fixed {
						text += "!"
					}
					found = append(found, text)
					if f.Text == "" || f.Hint == "" || !slices.Contains(IDs(), f.ID) || strings.Contains(f.Text+f.Hint, "hunter22") {
						t.Errorf("%+v", f)
					}
				}
				slices.Sort(found)
				want := slices.Sorted(slices.Values(tt.found))
				if d := cmp.Diff(want, found); d != "" {
					t.Errorf("found:\n%s", d)
				}
				if strings.Contains(tt.src, "hunter22") && !slices.Contains(r.Secrets, "hunter22") {
					t.Errorf("the secret is not known as one: %q", r.Secrets)
				}
				text := tt.want
				if text == "" {
					text = tt.src
				}
				if d := cmp.Diff(text, string(r.Text)); d != "" {
					t.Errorf("corrected:\n%s", d)
				}
				// What was corrected is gone, what was not is all that is left, and a second time changes nothing.
				again := Check(kind, r.Text)
				var left, still []string
				for _, f := range r.Findings {
					if !f.Fixed {
						left = append(left, f.ID)
					}
				}
				for _, f := range again.Findings {
					still = append(still, f.ID)
				}
				slices.Sort(left)
				slices.Sort(still)
				if d := cmp.Diff(left, still); d != "" || string(again.Text) != string(r.Text) {
					t.Errorf("after the correction:\n%s\n%s", d, again.Text)
				}
				// What is ignored is neither found nor corrected.
				if all := Check(kind, []byte(tt.src), IDs()...); len(all.Findings) > 0 || string(all.Text) != tt.src {
					t.Errorf("ignored: %+v", all.Findings)
				}
			})
		}
	}
}

// leftWrong reports whether something is found and not corrected.
func leftWrong(tt aText, id string) bool {
	return slices.ContainsFunc(tt.found, func(f string) bool { return strings.HasPrefix(f, id+":") && strings.HasSuffix(f, "!") })
}

// Others' readers take what was corrected.
func TestCorrectedIsRead(t *testing.T) {
	dir := t.TempDir()
	read := func(t *testing.T, name string, text []byte, tool string, args ...string) {
		t.Helper()
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Logf("no %s here", tool)
			return
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(path, append(args, file)...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s\n%s", tool, err, out, text)
		}
	}
	for i, tt := range userData() {
		if strings.Contains(tt.src, "<MongoIP>") {
			continue // no shell reads that
		}
		if leftWrong(tt, IDYAML) {
			continue
		}
		fixed := Check(UserData, []byte(tt.src)).Text
		name := fmt.Sprintf("user-data-%d", i)
		switch {
		case strings.HasPrefix(string(fixed), "#cloud-config"):
			var v any
			if err := yaml.Unmarshal(fixed, &v); err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			read(t, name, fixed, "cloud-init", "schema", "--config-file")
		case strings.HasPrefix(string(fixed), "#!/bin/bash"):
			read(t, name, fixed, "bash", "-n")
			read(t, name, fixed, "shellcheck", "-S", "error")
		case strings.HasPrefix(string(fixed), "#!/bin/sh"):
			read(t, name, fixed, "sh", "-n")
			read(t, name, fixed, "shellcheck", "-S", "error", "-s", "sh")
		}
	}
	for i, tt := range haproxyTexts() {
		if r := Check(HAProxy, []byte(tt.src)); !slices.ContainsFunc(r.Findings, func(f Finding) bool { return !f.Fixed }) {
			read(t, fmt.Sprintf("haproxy-%d.cfg", i), r.Text, "haproxy", "-c", "-q", "-f")
		}
	}
	for _, tt := range mongodTexts() {
		if strings.Contains(tt.src, "bind_ip") || leftWrong(tt, IDYAML) || leftWrong(tt, IDOpen) {
			continue
		}
		var c struct {
			Net struct {
				BindIP string `yaml:"bindIp"`
			} `yaml:"net"`
			Security struct{ Authorization, KeyFile string }
		}
		r := Check(Mongod, []byte(tt.src))
		if err := yaml.Unmarshal(r.Text, &c); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if len(r.Findings) > 0 && c.Security.Authorization != "enabled" {
			t.Errorf("%s: %+v", tt.name, c)
		}
	}
}

// What HAProxy says of the guides' text, where it is here: that the rule is true.
func TestHAProxyRefusesWhatWeFind(t *testing.T) {
	path, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("no haproxy here")
	}
	for _, tt := range haproxyTexts() {
		if !slices.ContainsFunc(tt.found, func(f string) bool { return strings.HasPrefix(f, IDReqAdd) }) {
			continue
		}
		file := filepath.Join(t.TempDir(), "haproxy.cfg")
		if err := os.WriteFile(file, []byte(tt.src), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(path, "-c", "-f", file).CombinedOutput(); err == nil {
			t.Errorf("%s: this HAProxy takes it:\n%s", tt.name, out)
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, texts := range [][]aText{userData(), haproxyTexts(), mongodTexts()} {
		for _, tt := range texts {
			f.Add([]byte(tt.src))
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		src, _, err := Open(src)
		if err != nil {
			return
		}
		kind := Recognize(src)
		r := Check(kind, src)
		lines := max(strings.Count(string(r.Source), "\n"), strings.Count(string(r.Source), "\r")) + 1
		for _, found := range r.Findings {
			if found.Line < 0 || found.Line > lines {
				t.Errorf("line %d of %d: %+v", found.Line, lines, found)
			}
		}
		if len(r.Findings) == 0 && string(r.Text) != string(src) {
			t.Errorf("changed without a reason: %q became %q", src, r.Text)
		}
		for _, f := range Check(kind, r.Text).Findings {
			if f.Fixed {
				t.Errorf("found again: %+v: %q became %q", f, src, r.Text)
			}
		}
		if len(Check(kind, src, IDs()...).Findings) > 0 {
			t.Errorf("found although all is ignored: %q", src)
		}
	})
}
