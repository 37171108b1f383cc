// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cmd/amsagent/cli"
)

// manual makes pages of one version.
type manual struct {
	ref     cli.Reference
	date    time.Time
	version string
}

// manPages are all pages by their file names: one for each command, one for config.yaml with all settings, one for the ids
// of errors, one for the units (the packages have a link to it for each unit). Nothing in those of the commands is written here that the help does not say, but for the
// files.
func manPages(ref cli.Reference, date time.Time, version string) map[string][]byte {
	m := manual{ref, date, version}
	pages := map[string][]byte{
		"amsagent-config.5":  m.settings(),
		"amsagent-errors.7":  m.errors(),
		"amsagent.service.8": m.units(),
	}
	for _, c := range ref.Commands {
		pages[pageName(c.Path)+".1"] = m.command(c)
	}
	return pages
}

// pageName is that of a command: amsagent-nodes-prune.
func pageName(path string) string { return strings.ReplaceAll(path, " ", "-") }

// usedFile is a file or folder that some commands use; without commands, all that read settings do.
type usedFile struct {
	path, what string
	commands   []string
}

func usedFiles() []usedFile {
	changes := []string{"join", "leave", "run", "converge", "deregister", "status"}
	node := append([]string{"drain", "undrain", "event"}, changes...)
	return []usedFile{
		{"/etc/amsagent/config.yaml", "the settings, written by the operator: amsagent-config(5). The package has an example in /usr/share/doc/amsagent/examples.", nil},
		{"/etc/amsagent/mongo", "the connection string of the cluster's MongoDB, written by join and removed by leave. Only root can read it.", append([]string{"nodes", "nodes prune"}, changes...)},
		{"/var/lib/amsagent/", "what the machine joined as, and what leave needs to give the files back; in drain.json the drain under way, or the last one. Only root can read it.", node},
		{"/run/amsagent/control.sock", "where the daemon listens to the command line.", append([]string{"run"}, node...)},
		{"/run/amsagent/result.json", "how the last join or leave ended, for machines; no secret is in it.", []string{"join", "leave"}},
		{"/usr/local/antmedia/", "Ant Media Server, where --ams-dir says nothing else. Of its files conf/jee-container.xml, conf/red5.properties and webapps/*/WEB-INF/red5-web.properties are edited in place.", changes},
		{"/etc/systemd/system/antmedia.service.d/50-amsagent.conf", "the node's address, a stop timeout that lets the server end in order, and the command that puts the files right before each start, written by join and removed by leave.", changes},
		{"/etc/hosts", "gets one marked line where this machine's own name does not resolve.", []string{"join", "leave", "run", "converge"}},
	}
}

func (m manual) command(c cli.CommandReference) []byte {
	r := m.page(pageName(c.Path), "1", c.Short)
	r.section("SYNOPSIS")
	r.line(bold(c.Usage))
	r.section("DESCRIPTION")
	if c.Long == "" {
		r.prose(upperFirst(c.Short) + ".")
	}
	r.prose(c.Long)
	if c.Path == program {
		r.section("COMMANDS")
		for _, sub := range m.ref.Commands {
			if sub.Path != program {
				r.item(bold(strings.TrimPrefix(sub.Path, program+" "))+" \\(em "+reference(pageName(sub.Path), "1"), sub.Short)
			}
		}
	}
	if len(c.Flags) > 0 {
		r.section("OPTIONS")
		r.flags(c.Flags)
	}
	if len(c.Global) > 0 {
		r.section("GLOBAL OPTIONS")
		r.flags(c.Global)
	}
	r.section("EXIT STATUS")
	r.exits(c.Exits)
	r.section("ENVIRONMENT")
	m.environment(r, c)
	r.section("FILES")
	n := 0
	for _, f := range usedFiles() {
		name := strings.TrimPrefix(c.Path, program+" ")
		if c.Path == program || c.Settings && f.commands == nil || slices.Contains(f.commands, name) {
			r.item(bold(f.path), f.what)
			n++
		}
	}
	if n == 0 {
		r.prose("None.")
	}
	if c.Example != "" {
		r.section("EXAMPLES")
		r.literal(c.Example)
	}
	r.section("SEE ALSO")
	var see []string
	for _, other := range m.ref.Commands {
		if parent, child := c.Path, other.Path; strings.HasPrefix(child, parent+" ") && !strings.Contains(child[len(parent)+1:], " ") ||
			strings.HasPrefix(parent, child+" ") {
			see = append(see, reference(pageName(child), "1"))
		}
	}
	see = append(see, reference("amsagent-config", "5"), reference("amsagent-errors", "7"), reference("amsagent.service", "8"))
	r.line(strings.Join(see, ",\n"))
	return r.bytes()
}

// environment lists the variables that a command's own flags have, and those that belong to others.
func (m manual) environment(r *roff, c cli.CommandReference) {
	own := map[string]bool{}
	for _, f := range append(slices.Clone(c.Flags), c.Global...) {
		own[f.Setting] = true
	}
	for _, s := range m.ref.Settings {
		if !own[s.Key] {
			continue
		}
		r.item(bold(s.Env), "as --"+s.Flag+", which wins over it: "+s.Help+".")
		if s.Key == "mongo" && c.Settings {
			r.item(bold("CREDENTIALS_DIRECTORY"), "set by systemd: the file mongo or amsagent.mongo in it is the MongoDB address, after AMSAGENT_MONGO and before config.yaml.")
		}
	}
	r.item(bold("NO_COLOR"), "no color, whatever its value.")
	if c.Settings {
		r.prose("Every other setting has a variable, too: amsagent-config(5). One that is set but empty counts as not set.")
	}
}

// settings is the page of config.yaml.
func (m manual) settings() []byte {
	r := m.page("amsagent-config", "5", "the settings of amsagent, in config.yaml, in the environment and in tags")
	r.section("SYNOPSIS")
	r.line(bold("/etc/amsagent/config.yaml"))
	r.section("DESCRIPTION")
	for _, c := range m.ref.Commands {
		if c.Path == program+" config" {
			intro, _, _ := strings.Cut(c.Long, "\nconfig.yaml holds ")
			r.prose(intro)
		}
	}
	r.prose("The file holds `key: value` lines. A key that does not exist is an error, and so is a value that cannot be used, wherever it stands: " +
		"a wrong one that is hidden today decides tomorrow. The file need not be there.\n\n" +
		"Everybody can read the file, so a password in it is refused: write `mongo: file:/etc/amsagent/mongo` and keep it in a file that only root can read, " +
		"or give it to the units as a credential (amsagent.service(8)).\n\n" +
		"`amsagent config` prints the values in effect, each with where it comes from. The daemon reads them again on `systemctl reload amsagent`.")
	r.section("SETTINGS")
	for _, s := range m.ref.Settings {
		head := bold(s.Key)
		if s.Arg != "" {
			head += " " + italic(s.Arg)
		}
		text := upperFirst(s.Help) + "."
		if len(s.Words) > 0 {
			text += " One of: " + strings.Join(s.Words, ", ") + "."
		}
		if s.Default != "" {
			text += " Default: " + s.Default + "."
		}
		text += "\n\nVariable: `" + s.Env + "`"
		if s.Flag != "" {
			text += "; flag: `--" + s.Flag + "`"
		}
		if s.Tag != "" {
			text += "; tag: `" + s.Tag + "`"
		}
		if !s.File {
			text += ". Not in the file"
		}
		r.item(head, text+".")
	}
	r.section("ENVIRONMENT")
	r.item(bold("CREDENTIALS_DIRECTORY"), "set by systemd: the file mongo or amsagent.mongo in it is the MongoDB address, after AMSAGENT_MONGO and before this file.")
	for _, e := range m.ref.Endpoints {
		r.item(bold(e.Env), e.Help+". A variable only: the daemon needs it in a drop-in of its units.")
	}
	r.item(bold("NO_COLOR"), "no color, whatever its value.")
	r.section("FILES")
	for _, f := range usedFiles()[:2] {
		r.item(bold(f.path), f.what)
	}
	r.section("EXAMPLES")
	r.literal("  mongo: 10.0.2.4\n  role: edge\n  beat_interval: 2s\n  drain_deadline: 20m")
	r.section("SEE ALSO")
	r.line(reference("amsagent", "1") + ",\n" + reference("amsagent-config", "1") + ",\n" + reference("amsagent.service", "8"))
	return r.bytes()
}

// errors is the page of the ids.
func (m manual) errors() []byte {
	r := m.page("amsagent-errors", "7", "the ids of errors and the exit codes of amsagent")
	r.section("DESCRIPTION")
	r.prose("An error for a person has a line with what is wrong, with its id in brackets, and lines for the cause, for what to do about it, and for the state that is left. " +
		"With `--output json` the same is one object. An id never changes its meaning, and neither does an exit code. Treat an exit code that is not listed as failure.")
	r.section("EXIT STATUS")
	r.exits(m.ref.Exits)
	r.section("ERRORS")
	r.prose("The number is the usual exit code. With `--output json` the error has the code of the command at hand, as exit_code.")
	for _, e := range m.ref.Errors {
		r.item(bold(e.ID)+fmt.Sprintf(" (%d)", e.Exit), upperFirst(e.Meaning)+".")
	}
	r.section("FINDINGS")
	r.prose("These are named by checks, warnings and `amsagent status`. `amsagent doctor --explain ID` prints the page of any id.")
	for _, f := range m.ref.Findings {
		r.item(bold(f.ID), upperFirst(f.Meaning)+".")
	}
	r.section("SEE ALSO")
	r.line(reference("amsagent", "1") + ",\n" + reference("amsagent-help", "1"))
	return r.bytes()
}

// units is the page of what systemd runs.
func (m manual) units() []byte {
	r := m.page("amsagent.service", "8", "the units of amsagent")
	r.names = []string{"amsagent-node.service"}
	r.name()
	r.section("SYNOPSIS")
	r.line(bold("amsagent.service") + "\n.br\n" + bold("amsagent-node.service"))
	r.section("DESCRIPTION")
	r.item(bold("amsagent.service"), "The daemon, amsagent-run(1): it keeps this node as it joined, beats into the registry, and drains the node when the cloud or the machine ends it. "+
		"Stopping or restarting it changes nothing in the cluster; `amsagent leave` does. On a machine that never joined and is not told where MongoDB is, it waits and says so once.")
	r.item(bold("amsagent-node.service"), "What comes before Ant Media Server starts and after it has stopped: amsagent-converge(1) mends the files of a node, and amsagent-deregister(1) says, "+
		"only when the machine goes down, that it has left.")
	r.section("INSTALLATION")
	r.prose("The packages enable amsagent.service and amsagent-node.service and start neither: the next boot or `amsagent join` does. " +
		"A preset of yours decides otherwise where it names them (systemd.preset(5)). `amsagent join` enables and starts both, `amsagent leave` stops and disables both. " +
		"An upgrade restarts the daemon where it runs, and touches neither the cluster nor Ant Media Server. Removing the package stops the daemon and leaves a node a node: run `amsagent leave` before.")
	r.section("CREDENTIALS")
	r.prose("The MongoDB address, with its password, need not be in a file below /etc/amsagent: the agent reads a credential with the name mongo or amsagent.mongo " +
		"before any other source but flags and environment. Add one of these to amsagent.service and to amsagent-node.service, with `systemctl edit`:\n\n" +
		"  [Service]\n  LoadCredential=mongo:/etc/credstore/amsagent.mongo\n  LoadCredentialEncrypted=mongo:/etc/credstore.encrypted/amsagent.mongo\n  ImportCredential=amsagent.mongo\n\n" +
		"The first takes a file that only root can read, the second one that systemd-creds(1) encrypted (systemd 250), the third what a virtual machine or a container was given under that name (systemd 254). " +
		"The commands that you run by hand are not run by systemd and do not see it: `amsagent join` takes `--mongo file:PATH`.")
	r.section("HARDENING")
	r.prose("The daemon is root, without most of what root may do; each line of the unit says why it is there. Two settings need a word with it: a folder of Ant Media Server below /home " +
		"(`ams_dir`) needs `ProtectHome=no`, and one below /usr but not /usr/local needs `ReadWritePaths=` with it, for amsagent.service and amsagent-node.service, with `systemctl edit`.")
	r.section("EXIT STATUS")
	for _, c := range m.ref.Commands {
		if c.Path == program+" run" {
			r.exits(c.Exits)
		}
	}
	r.prose("After 2 systemd does not start the daemon again: only a change of the configuration helps. After any other failure it does.")
	r.section("ENVIRONMENT")
	r.prose("Every setting has a variable, amsagent-config(5), which a drop-in can set: `systemctl edit amsagent`.")
	r.section("FILES")
	for _, f := range usedFiles() {
		r.item(bold(f.path), f.what)
	}
	r.section("SEE ALSO")
	r.line(reference("amsagent", "1") + ",\n" + reference("amsagent-run", "1") + ",\n" + reference("amsagent-config", "5") + ",\n" + reference("systemctl", "1"))
	return r.bytes()
}

func (m manual) page(name, section, short string) *roff {
	r := &roff{title: name, short: short}
	fmt.Fprintf(&r.b, ".\\\" Made from the help of the command line: do not edit.\n.TH %s %s \"%s\" \"%s\" \"amsagent manual\"\n",
		strings.ToUpper(escape(name)), section, m.date.Format(time.DateOnly), "amsagent "+escape(m.version))
	r.start = r.b.Len()
	r.name()
	return r
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
