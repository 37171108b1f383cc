// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package lint reads user data as cloud-init does, before a machine runs them. It reads commands line by line and does
// not know the values of variables. No finding holds a password. Its API is not stable yet.
package lint

import (
	"cmp"
	"encoding/base64"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/redact"
)

// The ids of what is found.
const (
	idHeader   = "AGENT-LINT-HEADER"   // a first line that neither cloud-init nor the kernel knows
	idFormat   = "AGENT-LINT-FORMAT"   // a format that is not checked
	idCRLF     = "AGENT-LINT-CRLF"     // line ends of Windows
	idYAML     = "AGENT-LINT-YAML"     // a cloud-config that is not YAML, or has a key twice
	idRuncmd   = "AGENT-LINT-RUNCMD"   // commands that cloud-init does not run
	idKey      = "AGENT-LINT-KEY"      // a misspelt key
	idSwitch   = "AGENT-LINT-SWITCH"   // the vendor's script, called in a way that it cancels
	idRestart  = "AGENT-LINT-RESTART"  // a restart of a server that a join has just proved
	idPassword = "AGENT-LINT-PASSWORD" // a password on a command line
	idSecret   = "AGENT-LINT-SECRET"   // a secret in user data

	idCommand = "AGENT-LINT-COMMAND" // a command line that the agent refuses
)

// IDs lists them.
func IDs() []string {
	return []string{idHeader, idFormat, idCRLF, idYAML, idRuncmd, idKey, idSwitch, idRestart, idPassword, idSecret, idCommand}
}

// Finding is one problem. Line counts from 1; 0 is the whole text.
type Finding struct {
	bootstrap.Finding
	Line int `json:"line,omitempty"`
}

// Refused returns why the agent would refuse a command line, and what to write; "" if it would not.
type Refused func(program string, args []string) (text, hint string)

type document struct {
	lines    []string
	refused  Refused
	findings []Finding
}

func (d *document) add(id string, v bootstrap.Severity, line int, text, hint string) {
	d.findings = append(d.findings, Finding{bootstrap.Finding{ID: id, Severity: v, Text: text, Hint: hint}, line})
}

// Check returns the findings by line, without those of an ignored id. Without refused it checks no command line of the agent.
func Check(text string, refused Refused, ignore ...string) []Finding {
	d := &document{lines: strings.Split(text, "\n"), refused: refused}
	if format := unread(text); format != "" {
		d.add(idFormat, bootstrap.Unknown, 0, "it is "+format+": not checked", "check each script and each cloud-config in it by itself")
	} else {
		d.header(text)
	}
	d.commands()
	d.findings = slices.DeleteFunc(d.findings, func(f Finding) bool { return slices.Contains(ignore, f.ID) })
	slices.SortStableFunc(d.findings, func(a, b Finding) int { return cmp.Compare(a.Line, b.Line) })
	return d.findings
}

// unread names a format of cloud-init that is not checked here.
func unread(text string) string {
	head := strings.ToLower(text[:min(len(text), 4096)])
	if strings.Contains(head, "mime-version:") { // cloud-init looks for it before it looks at the first line
		return "a MIME message"
	}
	packed, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
	if err == nil && (strings.HasPrefix(string(packed), "#") || strings.HasPrefix(string(packed), "\x1f\x8b")) {
		return "base64"
	}
	for prefix, format := range map[string]string{
		"\x1f\x8b": "gzip", "\xff\xfe": "UTF-16", "\xfe\xff": "UTF-16", "#include": "a list of addresses", "#cloud-config-archive": "a cloud-config archive",
		"#cloud-config-jsonp": "a JSON patch", "#cloud-boothook": "a boot hook", "#part-handler": "a part handler", "## template:": "a template", "<powershell>": "for Windows",
	} {
		if strings.HasPrefix(text, prefix) || strings.HasPrefix(strings.TrimSpace(head), prefix) {
			return format
		}
	}
	return ""
}

var (
	interpreter = `(?:(?:ba|da|k|mk|a|z|fi)?sh|python|perl|ruby|lua|node|php|tclsh|expect|pwsh|[gm]?awk)[0-9.]*`
	shebang     = regexp.MustCompile(`^#![ \t]*/(?:[\w.+-]+/)*(?:` + interpreter + `(?:[ \t]+[-+][\w=,.:+-]*)?|env[ \t]+` + interpreter + `|env[ \t]+-S[ \t]+` + interpreter + `[ \t].*)[ \t\r]*(?:\n|$)`)
	yamlLine    = regexp.MustCompile(`\bline (\d+):`)
)

func (d *document) header(text string) {
	const hint, unix = "the first line must be #!/bin/sh or #cloud-config, with no byte order mark, blank or empty line before it", `sed -i 's/\r$//' FILE`
	trimmed := strings.TrimSpace(text)
	isConfig := strings.HasPrefix(strings.ToLower(trimmed), "#cloud-config")
	windows := slices.IndexFunc(d.lines, func(line string) bool { return strings.HasSuffix(line, "\r") })
	switch {
	case trimmed == "":
		d.add(idHeader, bootstrap.Bad, 0, "it is empty, and cloud-init does nothing", "look at the program that should write it")
	case !isConfig && !strings.HasPrefix(trimmed, "#!"):
		d.add(idHeader, bootstrap.Bad, 1, "cloud-init does not know what it is, and does nothing with it", hint)
	case !strings.HasPrefix(text, "#"):
		d.add(idHeader, bootstrap.Bad, 1, "the first line is empty or begins with a blank: the kernel runs no such script, and cloud-init's schema refuses such a cloud-config", hint)
	case isConfig:
		d.cloudConfig(text)
	case !shebang.MatchString(trimmed):
		d.add(idHeader, bootstrap.Bad, 1, "#! needs one path of a known interpreter and has at most one option: the kernel runs nothing of this script",
			"write #!/bin/bash alone on the first line; if the line feeds were lost, put each command on a line of its own")
	case windows == 0:
		d.add(idCRLF, bootstrap.Warning, 0, "its lines end as on Windows: cloud-init corrects that, and other programs that run a script do not", unix)
	case windows > 0:
		d.add(idCRLF, bootstrap.Bad, windows+1, `it ends as on Windows: the shell reads the \r as part of the command`, unix)
	}
}

func (d *document) cloudConfig(text string) {
	var doc yaml.Node
	switch err := yaml.Unmarshal([]byte(text), &doc); {
	case err != nil:
		line, _ := strconv.Atoi(append(yamlLine.FindStringSubmatch(err.Error()), "", "")[1])
		d.add(idYAML, bootstrap.Bad, min(line, len(d.lines)), "it is not YAML, in this line or near it, and cloud-init ignores all of it",
			"indent with spaces, not tabs, two more for each level; quote a value that has : or # in it")
	case len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode:
		d.add(idYAML, bootstrap.Bad, 1, "it has no keys, and cloud-init does nothing with it", "write each key on a line of its own below #cloud-config")
	default:
		d.twice(&doc)
		for pair := range slices.Chunk(doc.Content[0].Content, 2) {
			if key := pair[0]; key.Value == "runcmd" || key.Value == "bootcmd" {
				d.runcmd(key, followed(pair[1]))
			} else if similar := similarKey(key.Value); similar != "" {
				d.add(idKey, bootstrap.Warning, key.Line, "cloud-init does not know the key "+key.Value+", and ignores it", "write "+similar+":")
			}
		}
	}
}

// twice finds keys that stand twice in a mapping.
func (d *document) twice(n *yaml.Node) {
	seen := map[string]int{}
	for i, child := range n.Content {
		d.twice(child)
		if n.Kind != yaml.MappingNode || i%2 != 0 || child.Kind != yaml.ScalarNode {
			continue
		}
		if line := seen[child.Value]; line > 0 {
			d.add(idYAML, bootstrap.Bad, child.Line, "the key "+child.Value+" stands in line "+strconv.Itoa(line)+", too: cloud-init reads only the last one", "put both under one key")
		}
		seen[child.Value] = child.Line
	}
}

func followed(n *yaml.Node) *yaml.Node { return cmp.Or(n.Alias, n) }

// notString is true for yes and no, too: they are strings for our reader of YAML, and booleans for that of cloud-init.
func notString(n *yaml.Node) bool {
	n = followed(n)
	return n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" || n.Style == 0 && slices.Contains([]string{"yes", "no", "on", "off"}, strings.ToLower(n.Value))
}

func (d *document) runcmd(key, list *yaml.Node) {
	if list.Kind != yaml.SequenceNode {
		d.add(idRuncmd, bootstrap.Bad, key.Line, key.Value+" is not a list, and cloud-init runs none of it", "write each command as an item: - COMMAND")
	}
	for _, item := range list.Content {
		words := followed(item)
		line := words.Value
		for _, word := range words.Content {
			line += " " + followed(word).Value
		}
		if key.Value == "bootcmd" && slices.ContainsFunc(split(line), joins) {
			d.add(idRuncmd, bootstrap.Bad, item.Line, "bootcmd runs before systemd starts services: the join fails, and Ant Media Server stays down", "move it to runcmd")
		}
		switch {
		case list.Kind != yaml.SequenceNode, !notString(words), words.ShortTag() == "!!null": // an empty item is skipped
		case words.Kind != yaml.SequenceNode:
			d.add(idRuncmd, bootstrap.Bad, item.Line, "an item is a string or a list of strings, and this one is not: cloud-init runs none of "+key.Value, "quote the line: - 'COMMAND'")
		case slices.ContainsFunc(words.Content, notString):
			d.add(idRuncmd, bootstrap.Warning, item.Line, "an argument is not a string, and cloud-init rewrites it: 0755 becomes 493, yes becomes True", "quote each argument")
		case len(words.Content) > 0 && strings.ContainsAny(followed(words.Content[0]).Value, " \t\n"):
			d.add(idRuncmd, bootstrap.Bad, item.Line, "a list is a program and its arguments, and no program has this whole line as its name", "write the command without brackets: - COMMAND")
		}
	}
}

// cloudKeys are the keys of the top level that people write, and those that resemble one of them.
var cloudKeys = strings.Fields(`apt bootcmd ca-certs ca_certs chpasswd disable_root disk_setup final_message fqdn fs_setup groups growpart hostname locale manage_etc_hosts
mount_default_fields mounts ntp output package_reboot_if_required package_update package_upgrade packages password phone_home power_state preserve_hostname random_seed
resize_rootfs resolv_conf rsyslog runcmd snap ssh_authorized_keys ssh_deletekeys ssh_import_id ssh_keys ssh_pwauth swap timezone updates user users write_files yum_repos`)

// similarKey returns the known key from which an unknown one differs in one letter or sign, in _, or in case; else "".
func similarKey(key string) string {
	for _, known := range cloudKeys {
		a, b, i := strings.ReplaceAll(strings.ToLower(key), "_", ""), strings.ReplaceAll(known, "_", ""), 0
		for i < min(len(a), len(b)) && a[i] == b[i] {
			i++
		}
		restA, restB := a[min(i+1, len(a)):], b[min(i+1, len(b)):]
		if (restA == restB || restA == b[i:] || a[i:] == restB) && len(key) > 3 && !slices.Contains(cloudKeys, key) {
			return known
		}
	}
	return ""
}

var (
	// An operator of the shell; a comment or a redirection, which begin with a blank; a word with its quotes.
	token        = regexp.MustCompile(`[;&|()]+|[ \t](?:#.*|\d*>[>&]*[ \t]*[^\s;&|()]*|<[< \t]+[^\s;&|()]*)|(?:"[^"]*"|'[^']*'|\\.|[^\s;&|()"'\\])+`)
	unquote      = strings.NewReplacer(`"`, "", `'`, "", " ", "_")
	yamlItem     = regexp.MustCompile(`^- +(?:["'](.*)["']|\[(.*)\])$`)
	yamlMarks    = strings.NewReplacer(`"`, "", `'`, "", ",", " ")
	vendorSwitch = regexp.MustCompile(`(?:^|[ /])change_server_mode\.sh cluster (\S+)( \S+)?`)
	answered     = regexp.MustCompile(`(?:\byes\b|\b(?:echo|printf)[ \t]+["']?[yY][^|]*)[ \t]*\||<<<[ \t]*["']?[yY]`)
	join         = regexp.MustCompile(`(?:^|[ /])amsagent join\b`)
	// A program and its arguments, after what may stand before it.
	program   = regexp.MustCompile(`^(?:- )?(?:(?:sudo|exec|nohup|time|env|if|elif|while|until|then|do|else|!|\{|[A-Za-z_]\w*=\S*) )*(?:\S*/)?([\w-]+)((?: \S+)*)$`)
	noRestart = regexp.MustCompile(`--(?:offline|dry-run|service[= ]none)\b`)
	restart   = regexp.MustCompile(`^(?:- )?(?:sudo )?(?:(?:\S*/)?service antmedia (?:restart|stop)|(?:\S*/)?systemctl (?:-\S+ )*(?:restart|stop) (?:\S+ )*antmedia(?:\.service)?(?: .*)?|/etc/init\.d/antmedia (?:restart|stop))$`)
	// Commands that give no cause for a restart.
	harmless = regexp.MustCompile(`^(?:- )?(?:sudo )?(?:(?:\S*/)?systemctl (?:-\S+ )*(?:enable|status|is-active|daemon-reload)\b|(?:sleep|echo|logger|date|sync|wait)\b|amsagent (?:status|nodes|doctor)\b)`)
	// A URI with a login, or the options with a password: -p and -w (of TURN) of start.sh, -s of create_app.sh, whose -p is a path.
	password    = regexp.MustCompile(`(?:^|[ /])(?:(?:amsagent|[\w-]+\.sh) (?:.* )?(?:\S*://[^\s/@:]*:[^\s@]*@|--password)|start(?:-debug)?\.sh (?:.* )?-[pw]|create_app\.sh (?:.* )?-s|change_server_mode\.sh cluster \S+ \S+ \S)`)
	uriPassword = regexp.MustCompile(`\b[a-z][a-z0-9+.-]*://[^\s"'@/:]+:([^\s"'@]+)@`)
	knownSecret = regexp.MustCompile(`\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY`)
	secretPlace = regexp.MustCompile(`(?i)(?:name|file|path|arn)["']?[ \t]*[:=][ \t]*$`)
	// A value up to its end, with its first quote; not the begin of an expression.
	literal   = regexp.MustCompile(`^(?:"[^"]*|'[^']*|[^\s;&|,}()\[\]"']+(?:[\s;&|,}"']|$))`)
	notSecret = regexp.MustCompile("[$`<{*]|^[\"']?(?:.{0,3}|(?i:file:.*|/.*|password|secret|true|false|null|enabled|disabled|none|prompt))$")
)

// split returns the commands of a line of shell or of an item of YAML, without quotes, and each ||.
func split(text string) (commands []string) {
	if m := yamlItem.FindStringSubmatch(text); m != nil {
		text = m[1] + yamlMarks.Replace(m[2])
	}
	command := ""
	for _, t := range append(token.FindAllString(text, -1), ";") {
		if strings.ContainsAny(t[:1], ";&|()") {
			commands, command = append(commands, strings.TrimSpace(command), strings.Trim(t, ";&()")), ""
		} else if t[0] > ' ' {
			command += " " + unquote.Replace(t)
		}
	}
	return slices.DeleteFunc(commands, func(c string) bool { return c == "" || c == "|" })
}

// joins reports whether a command restarts the server and waits for it.
func joins(command string) bool { return join.MatchString(command) && !noRestart.MatchString(command) }

func (d *document) commands() {
	isJoined := false // by the command before
	for i := 0; i < len(d.lines); i++ {
		line, text := i+1, strings.TrimSpace(d.lines[i])
		for !strings.HasPrefix(text, "#") && strings.HasSuffix(text, `\`) && i+1 < len(d.lines) {
			i++
			text = strings.TrimSuffix(text, `\`) + strings.TrimSpace(d.lines[i])
		}
		if strings.HasPrefix(text, "#") || strings.Contains(text, "\x00") {
			continue
		}
		commands := split(text)
		for _, command := range commands {
			if isJoined && restart.MatchString(command) {
				d.add(idRestart, bootstrap.Bad, line, "the join before it has restarted Ant Media Server and seen it serve; another restart takes the node out of service again", "remove the restart")
			}
			isJoined = joins(command) || isJoined && harmless.MatchString(command)
			d.agent(line, command)
			if password.MatchString(command) {
				d.add(idPassword, bootstrap.Bad, line, "a password stands on a command line, where every user of the machine can read it",
					"put the URI with its password into a file of mode 0600 and write: amsagent join --mongo file:PATH")
			}
			if m := vendorSwitch.FindStringSubmatch(command); m != nil {
				d.switchMode(line, m[1], m[2] != "", answered.MatchString(text))
			}
		}
		if !slices.ContainsFunc(commands, password.MatchString) { // which is one finding, not two
			d.secret(line, text)
		}
	}
}

// agent checks a command line of the agent itself.
func (d *document) agent(line int, command string) {
	m := program.FindStringSubmatch(command)
	if m == nil || d.refused == nil {
		return
	}
	if text, hint := d.refused(m[1], strings.Fields(m[2])); text != "" {
		d.add(idCommand, bootstrap.Bad, line, text, hint)
	}
}

// switchMode judges a call of the vendor's script, which since 3.0 asks a question about everything but a URI.
func (d *document) switchMode(line int, mongo string, isMore, isAnswered bool) {
	_, err := netip.ParseAddr(mongo)
	switch {
	case !isMore && (strings.HasPrefix(mongo, "mongodb") || err == nil && isAnswered):
		return
	case strings.HasPrefix(mongo, "<"):
		mongo = "ADDRESS"
	case isMore || strings.Contains(mongo, "@"):
		mongo = "file:PATH"
	}
	d.add(idSwitch, bootstrap.Bad, line, "change_server_mode.sh of 3.x asks a question here: without a terminal it cancels, and the server stays standalone; with an answer it uses a name as an address of Redis",
		"with amsagent in the image, write in its place: amsagent join --mongo "+mongo)
}

func (d *document) secret(line int, text string) {
	values := append(uriPassword.FindStringSubmatch(text), "", "")[1:2]
	for _, s := range redact.Find(text) {
		if !secretPlace.MatchString(text[:s.From]) {
			values = append(values, literal.FindString(text[s.From:s.To]))
		}
	}
	if knownSecret.MatchString(text) || slices.ContainsFunc(values, func(v string) bool { return !notSecret.MatchString(v) }) {
		d.add(idSecret, bootstrap.Bad, line, "a password, key or token stands in user data: every process on the machine, and every operator who may describe the instance, can read it",
			"let the machine fetch it from the cloud's secret store by its role")
	}
}
