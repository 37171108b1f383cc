// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"bytes"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/internal/mask"
)

// SecretFile is where the corrected text expects the connection string. Who puts it
// there is the operator's choice: a secret store, an image, a volume.
const SecretFile = "/root/mongo.uri"

// word is one argument of a command: quoted or plain.
const word = `(?:"[^"\n]*"|'[^'\n]*'|<[\w. -]+>|[^\s;|&<>()"'#\\]+)`

var (
	argument = regexp.MustCompile(word)
	// The vendor's script with the words before it and its arguments after it.
	switchCall = regexp.MustCompile(`((?:\bsudo[ \t]+(?:-\w+[ \t]+)*)?)((?:\b(?:bash|sh)[ \t]+(?:-\w+[ \t]+)*)?)(["']?[\w./${}~-]*change_server_mode\.sh["']?)[ \t]+cluster((?:[ \t]+` + word + `)+)`)
	// The same as a list of YAML or JSON.
	switchList = regexp.MustCompile(`\[[ \t]*(?:["']?(?:bash|sh|sudo)["']?[ \t]*,[ \t]*)*["']?[\w./-]*change_server_mode\.sh["']?[ \t]*,[ \t]*["']?cluster["']?[ \t]*,[ \t]*["']?([^\]"',\s]+)["']?[ \t]*((?:,[ \t]*["']?[^\]"',\s]+["']?[ \t]*)*)\]`)
	// Somebody answers its question.
	answered = regexp.MustCompile(`(\byes\b|\becho[ \t]+["']?[yY](es)?["']?|\bprintf[ \t]+["']?[yY][^|]*)[ \t]*\|[ \t]*$|<<<[ \t]*["']?[yY]`)

	// A restart as the last command of a line, alone or after another one; and a join as that, with its flags.
	restartCall = regexp.MustCompile(`(^[ \t]*(?:-[ \t]+)?|[ \t]*(?:&&|;)[ \t]*)(?:sudo[ \t]+)?(?:service[ \t]+antmedia[ \t]+restart|systemctl[ \t]+restart[ \t]+antmedia(?:\.service)?|/etc/init\.d/antmedia[ \t]+restart)[ \t]*$`)
	joinCall    = regexp.MustCompile(`(?:^|[;&|({-])[ \t]*(?:sudo[ \t]+(?:-\w+[ \t]+)*)?(?:[\w./-]*/)?amsagent[ \t]+join\b([^|;&\\]*)$`)
	// A join with one of these restarts nothing.
	joinAlone = regexp.MustCompile(`[ \t]--(?:offline|dry-run|service[= \t][ \t]*["']?none)\b`)

	joinSecret = regexp.MustCompile(`(\bamsagent[ \t]+(?:[^\n;|&]*[ \t])?join\b[^\n;|&]*?--mongo[= \t][ \t]*)(["']?mongodb(?:\+srv)?://[^\s"'@/]*:[^\s"']*@[^\s"']*["']?)`)

	curlPipe = regexp.MustCompile(`\bcurl\b([ \t][^\n|;&]*)\|[ \t]*(?:sudo[ \t]+(?:-\w+[ \t]+)*)?(?:bash|sh|dash|zsh)\b`)
	curlFail = regexp.MustCompile(`(?:^|[ \t])(?:-[a-zA-Z]*f[a-zA-Z]*|--fail(?:-with-body)?)(?:[ \t]|$)`)

	uriSecret    = regexp.MustCompile(`\b[a-z][a-z0-9+.-]*://[^\s"'@/:]+:([^\s"'@]+)@`)
	settingName  = regexp.MustCompile(`(?:^|[\s"'{,;])([\w.-]+)["']?[ \t]*[:=][ \t]*`)
	settingValue = regexp.MustCompile(`^(?:"[^"\n]+"|'[^'\n]+'|[^\s"';|&,}]+)`)
	// namesSecret: not the secret, but where it is.
	namesSecret = regexp.MustCompile(`(?i)(?:name|file|path|arn)$`)
	awsKey      = regexp.MustCompile(`\b(?:AKIA|ASIA)[0-9A-Z]{16}\b`)
	privateKey  = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----`)

	opens = regexp.MustCompile(`bind_?[iI]p.*(?:0\.0\.0\.0|::)|bindIpAll:[ \t]*true|--bind_ip_all|mongod\.conf.*0\.0\.0\.0|0\.0\.0\.0.*mongod\.conf`)
	// What cloud-init knows by its first line.
	headers = []string{
		"#!", "#cloud-config", "#include", "#cloud-boothook", "#part-handler", "#upstart-job", "## template:", "#template:",
		"MIME-Version:", "Content-Type:", "From ", "<powershell", "<script", "rem cmd",
	}
	yamlKey = regexp.MustCompile(`^(runcmd|bootcmd|packages|package_update|package_upgrade|write_files|users|ssh_authorized_keys|hostname|mounts|apt|ntp|disk_setup|fs_setup|power_state|swap):`)
	bashism = regexp.MustCompile(`\[\[|<<<|\bfunction[ \t]+\w|=\(|\bsource[ \t]|pipefail`)
)

func (d *document) userData() {
	d.header()
	if d.eol != "\n" && d.wants(IDCRLF) {
		d.find(IDCRLF, -1, true, "its lines end as on Windows, or on the first Macs: the shell that reads it takes the \\r for a part of each command", "save it with the line ends of Unix")
		d.eol = "\n"
		for i := range d.lines {
			d.lines[i].text = strings.TrimRight(d.lines[i].text, "\r")
		}
	}
	if bytes.HasPrefix(d.text(), []byte("#cloud-config")) {
		d.yaml("cloud-init passes over all of it")
	}
	last := -1 // the command before this one
	for i := range d.lines {
		if comment(d.lines[i].text) {
			continue
		}
		d.switchMode(i)
		d.restart(last, i)
		if !d.lines[i].gone {
			last = i
		}
		d.password(i)
		d.curl(i)
		d.secret(i)
	}
	d.opened()
}

// known reports whether cloud-init knows something by its first line.
func known(s string) bool {
	return slices.ContainsFunc(headers, func(h string) bool { return strings.HasPrefix(strings.ToLower(s), strings.ToLower(h)) })
}

// header: cloud-init goes by the first line, and passes over what it does not know.
func (d *document) header() {
	if !d.wants(IDHeader) {
		return
	}
	first := slices.IndexFunc(d.lines, func(l line) bool { return strings.TrimSpace(l.text) != "" })
	if first < 0 {
		// What was to make it has failed, most likely.
		d.find(IDHeader, -1, false, "there is nothing in it, so that cloud-init does nothing", "look at what was to write it")
		return
	}
	text := d.lines[first].text
	const hint = "the first line must say what it is: #!/bin/sh or #cloud-config, with nothing before it"
	switch {
	case known(text) && first == 0 && !d.bom:
		return
	case known(strings.TrimSpace(text)):
		d.find(IDHeader, first, true, "something stands before the first line's #, so that cloud-init does not know what it is and does nothing", hint)
		for i := range first {
			d.lines[i].gone = true
		}
		d.lines[first].text, d.bom = strings.TrimSpace(text), false
		return
	}
	begin := "#!/bin/sh"
	switch all := string(d.text()); {
	case slices.ContainsFunc(d.lines, func(l line) bool { return yamlKey.MatchString(l.text) }):
		begin = "#cloud-config"
	case bashism.MatchString(all):
		begin = "#!/bin/bash"
	}
	d.find(IDHeader, first, true, "it does not say what it is, so that cloud-init does nothing with it", hint)
	d.bom = false
	d.lines[0].before = append(d.lines[0].before, begin)
}

const secretComment = "# The connection string, with its password, belongs into this file and not here: every process on the machine can read user data."

// switchMode finds the vendor's script, called so that it does nothing or the wrong
// thing. Since 3.0 it asks a question about everything but a URI, and takes no answer
// for no; a name, or an address with a port, becomes Redis.
func (d *document) switchMode(i int) {
	if !d.wants(IDSwitch) {
		return
	}
	l := &d.lines[i]
	const hint = "amsagent must be in the image, or be installed before that line; or give the vendor's script a URI, as mongodb://ADDRESS, about which it asks nothing"
	l.text = switchCall.ReplaceAllStringFunc(l.text, func(call string) string {
		m := switchCall.FindStringSubmatch(call)
		args := argument.FindAllString(m[4], -1)
		mongo := strings.Trim(args[0], `"'`)
		// It was cut out of the line: what stands before it says who answers.
		before, _, _ := strings.Cut(l.text, call)
		after := l.text[len(before)+len(call):]
		if strings.HasPrefix(mongo, "mongodb") && len(args) == 1 {
			return call
		}
		if _, err := netip.ParseAddr(mongo); err == nil && len(args) == 1 && (answered.MatchString(before) || answered.MatchString(after)) {
			return call
		}
		if strings.HasPrefix(mongo, "<") {
			d.find(IDSwitch, i, false, "the guide's "+mongo+" still stands where MongoDB's address belongs", "put the address there; "+hint)
			return call
		}
		d.find(IDSwitch, i, true, d.why(mongo), hint)
		return m[1] + "amsagent join --mongo " + d.mongo(i, args)
	})
	l.text = switchList.ReplaceAllStringFunc(l.text, func(call string) string {
		m := switchList.FindStringSubmatch(call)
		if strings.HasPrefix(m[1], "mongodb") && m[2] == "" {
			return call
		}
		args := append([]string{m[1]}, strings.FieldsFunc(m[2], func(r rune) bool { return strings.ContainsRune(", \t\"'", r) })...)
		d.find(IDSwitch, i, true, d.why(m[1]), hint)
		return fmt.Sprintf("[ amsagent, join, --mongo, %q ]", strings.Trim(d.mongo(i, args), `"'`))
	})
}

// restart finds a restart of Ant Media Server right after a join: the join restarts it and waits until it serves. One after
// other commands may have another cause.
func (d *document) restart(last, i int) {
	l := &d.lines[i]
	at := restartCall.FindStringIndex(l.text)
	if at == nil || !d.wants(IDRestart) {
		return
	}
	own := joins(l.text[:at[0]])
	if !own && (last < 0 || at[0] > 0 || indent(d.lines[last].text) != indent(l.text) || !joins(d.lines[last].text)) {
		return
	}
	d.find(IDRestart, i, true, "the join before it has restarted Ant Media Server and seen it serve; another restart takes the node out of service again", "leave the restart out")
	if own {
		l.text = l.text[:at[0]]
	} else {
		l.gone = true
	}
}

// joins reports whether the last command of a line is a join that restarts the server.
func joins(text string) bool {
	m := joinCall.FindStringSubmatch(text)
	return m != nil && !joinAlone.MatchString(m[1])
}

// mongo is what a join gets in place of the arguments of the vendor's script.
func (d *document) mongo(i int, args []string) string {
	if len(args) == 1 {
		return args[0]
	}
	if len(args) > 2 {
		d.secrets = append(d.secrets, strings.Trim(args[2], `"'`))
	}
	if d.wants(IDPassword) {
		d.find(IDPassword, i, true, "a user and a password stand on a command line, where every user of the machine can read them; and the applications of 3.x do not get them",
			"put mongodb://USER:PASSWORD@HOST/ into a file of mode 0600, and its path behind --mongo file:")
	}
	d.expectFile(i)
	return "file:" + SecretFile
}

func (d *document) expectFile(i int) {
	for i > 0 && strings.HasSuffix(d.lines[i-1].text, `\`) && !comment(d.lines[i-1].text) {
		i-- // no comment in the middle of a command
	}
	c := indent(d.lines[i].text) + secretComment
	if !slices.Contains(d.lines[i].before, c) {
		d.lines[i].before = append(d.lines[i].before, c)
	}
}

func (d *document) why(mongo string) string {
	const cancels = "change_server_mode.sh of 3.x asks a question here, and takes no answer for no: without a terminal it cancels, and the server stays standalone"
	if strings.ContainsAny(mongo, "$`{") {
		return cancels + ", unless the variable holds a URI"
	}
	if _, err := netip.ParseAddr(mongo); err != nil && mongo != "localhost" && !strings.HasPrefix(mongo, "mongo") {
		return cancels + "; answered, it takes this for an address of Redis"
	}
	return cancels
}

func (d *document) password(i int) {
	l := &d.lines[i]
	for _, m := range uriSecret.FindAllStringSubmatch(l.text, -1) {
		if !strings.Contains(m[1], "$") {
			d.secrets = append(d.secrets, m[1])
		}
	}
	if !d.wants(IDPassword) {
		return
	}
	l.text = joinSecret.ReplaceAllStringFunc(l.text, func(call string) string {
		m := joinSecret.FindStringSubmatch(call)
		if strings.Contains(m[2], "$") {
			// Whatever is in the variable; it is on the command line all the same.
			d.find(IDPassword, i, false, "a password on a command line can be read by every user of the machine", "put the URI into a file of mode 0600, and its path behind --mongo file:")
			return call
		}
		d.find(IDPassword, i, true, "a password on a command line can be read by every user of the machine, and in user data by every process",
			"put the URI into a file of mode 0600 by other means, or into systemd's credential mongo")
		d.expectFile(i)
		return m[1] + "file:" + SecretFile
	})
}

// curl: without --fail it prints the page of an error, which the shell then runs, and
// ends well.
func (d *document) curl(i int) {
	if !d.wants(IDCurl) {
		return
	}
	l := &d.lines[i]
	l.text = curlPipe.ReplaceAllStringFunc(l.text, func(call string) string {
		if curlFail.MatchString(curlPipe.FindStringSubmatch(call)[1]) {
			return call
		}
		d.find(IDCurl, i, true, "curl hands the page of an error to the shell, which runs it", "with -f it hands over nothing and says why; better fetch a file, check its sum, then run it")
		return strings.Replace(call, "curl", "curl -f", 1)
	})
}

// secret finds what looks like one. Where it belongs is not for us to say.
func (d *document) secret(i int) {
	text := d.lines[i].text
	literal := func(v string) bool {
		v = strings.Trim(v, `"'`)
		return len(v) > 3 && v != "PASSWORD" && v != "SECRET" && !strings.ContainsAny(v, "$`<{*") && !strings.HasPrefix(v, "file:") && !strings.HasPrefix(v, "/") &&
			!slices.Contains([]string{"true", "false", "null", "enabled", "disabled", "none", "prompt"}, strings.ToLower(v))
	}
	what := ""
	keep := func(secret, kind string) {
		what = kind
		d.secrets = append(d.secrets, strings.Trim(secret, `"'`))
	}
	if m := uriSecret.FindStringSubmatch(text); m != nil && literal(m[1]) {
		keep(m[1], "a password in a URI")
	}
	if m := awsKey.FindString(text); m != "" {
		keep(m, "an access key of AWS")
	}
	if privateKey.MatchString(text) {
		what = "a private key"
	}
	for _, m := range settingName.FindAllStringSubmatchIndex(text, -1) {
		name, v := text[m[2]:m[3]], settingValue.FindString(text[m[1]:])
		if !mask.Name(name) || namesSecret.MatchString(name) {
			continue
		}
		// Brackets without quotes: a program that the user data bring along calls something, or looks it up.
		code := v == strings.Trim(v, `"'`) && strings.ContainsAny(v, "()[]")
		if literal(v) && !code {
			keep(v, "the value of "+name)
		}
	}
	if what != "" && d.wants(IDSecret) {
		d.find(IDSecret, i, false, what+" stands in user data, which every process on the machine can read from the metadata service, and everybody who may look at the instance",
			"let the machine fetch it from the cloud's secret store by its role")
	}
}

// opened finds a MongoDB that the script opens to the network without a password.
func (d *document) opened() {
	if !d.wants(IDOpen) || slices.ContainsFunc(d.lines, func(l line) bool {
		return !comment(l.text) && (strings.Contains(l.text, "authorization") || strings.Contains(l.text, "--auth") || strings.Contains(l.text, "keyFile"))
	}) {
		return
	}
	for i := range d.lines {
		l := &d.lines[i]
		if comment(l.text) || !opens.MatchString(l.text) {
			continue
		}
		fixed := strings.Contains(l.text, "sed") && strings.Contains(l.text, "/etc/mongod.conf") && !strings.HasSuffix(l.text, `\`)
		if fixed {
			const text = `printf 'security:\n  authorization: enabled\n'`
			to := " >>/etc/mongod.conf"
			if strings.Contains(l.text, "sudo ") {
				to = " | sudo tee -a /etc/mongod.conf >/dev/null" // whoever runs it is not root
			}
			add := indent(l.text) + text + to
			if rest, ok := strings.CutPrefix(strings.TrimSpace(l.text), "- "); ok {
				if strings.HasPrefix(rest, "[") {
					fixed = false // a list of words has no shell
				} else {
					add = indent(l.text) + `- "` + strings.ReplaceAll(text+to, `\`, `\\`) + `"`
				}
			}
			if fixed {
				l.after = append(l.after, add)
			}
		}
		d.find(IDOpen, i, fixed, "MongoDB is opened to the whole network, and asks nobody for a password", "security.authorization: enabled, a user for the cluster, and better the private address in place of 0.0.0.0")
		return
	}
}
