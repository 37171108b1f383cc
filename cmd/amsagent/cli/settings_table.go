// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/amsagent/amsagent/cluster"
)

const envPrefix = "AMSAGENT_"

// Keys of the settings, as config.yaml spells them.
const (
	keyMongo          = "mongo"
	keyRole           = "role"
	keyGroup          = "group"
	keyAddress        = "address"
	keyAMSDir         = "ams_dir"
	keyAMSRelease     = "ams_release"
	keyProvider       = "provider"
	keyService        = "service"
	keyServiceCommand = "service_command"
	keyRemoteIPValve  = "remote_ip_valve"
	keyTimeout        = "timeout"
	keyOnFailure      = "on_failure"
	keyAutoJoin       = "auto_join"
	keyBeatInterval   = "beat_interval"
	keyMetrics        = "metrics_address"
	keyAgentCheck     = "agent_check_address"
	keyServing        = "serving"
	keyUnhealthyAfter = "unhealthy_after"
	keyDrainDeadline  = "drain_deadline"
	keyRemoteDrain    = "remote_drain"
	keyRoot           = "root"
	keyConfig         = "config"
	keyOutput         = "output"
	keyLogLevel       = "log_level"
	keyColor          = "color"
	keyHooks          = "hooks"
)

// setting is one row of the table that flags, environment variables, config.yaml keys, instance tags and their
// documentation are all made from.
type setting struct {
	key  string
	help string
	// arg is the word for the value in help: --timeout DURATION.
	arg string
	def string
	// flag is the long flag, "" for none; short its letter; global marks a flag of every command.
	flag   string
	short  string
	global bool
	// kept: join keeps the value for the daemon and for later commands.
	kept bool
	// noFile: cannot stand in config.yaml, because it decides which file that is.
	noFile bool
	// tag is the name after "amsagent:" for a setting that instance tags may carry.
	tag string
	// words are the values allowed, where they are a closed set.
	words []string
	// secret values are never echoed, not even when they are wrong.
	secret bool
	// check returns the value in its one canonical spelling. It never touches the machine.
	check func(value string) (string, error)
}

// env is the variable of a setting: always the key with our prefix, so that nobody has to look it up.
func (s setting) env() string { return envPrefix + strings.ToUpper(s.key) }

// list reports whether the value is a comma list.
func (s setting) list() bool { return strings.HasSuffix(s.arg, ",...") }

// booleans are the words of a setting that is on or off.
func booleans() []string { return []string{"true", "false"} }

// settingsTable lists the settings in the order of `config`. It is only read.
var settingsTable = sync.OnceValue(func() []setting {
	return []setting{
		{
			key: keyMongo, flag: "mongo", arg: "ADDRESS", tag: "mongo", secret: true, check: checkMongo,
			help: "the cluster's MongoDB: IP, host[:port], a comma list, mongodb://…, mongodb+srv://…, or file:PATH holding one of these (file:- is standard input, on the command line only); a password given here shows in the process list, one in a file does not",
		},
		{
			key: keyRole, kept: true, flag: "role", arg: "ROLE", tag: "role", check: checkRole,
			help: "what this node is for: origin, edge, or a word of yours; capitals become small letters",
		},
		{
			key: keyGroup, kept: true, flag: "group", arg: "GROUP", tag: "group", check: checkGroup,
			help: "the scaling group; where unset, the one the cloud names",
		},
		{
			key: keyAddress, kept: true, flag: "address", arg: "IP", check: checkAddress,
			help: "the address other nodes reach this one by; where unset, the private address the cloud names",
		},
		{
			key: keyAMSDir, kept: true, flag: "ams-dir", arg: "DIR", def: "/usr/local/antmedia", check: checkAbsPath,
			help: "where Ant Media Server is installed",
		},
		{
			key: keyAMSRelease, kept: true, flag: "ams-release", arg: "RELEASE", check: checkRelease,
			help: "the release of Ant Media Server, where its jar does not tell",
		},
		{
			key: keyProvider, kept: true, flag: "provider", arg: "NAME", def: "auto", words: []string{"auto", "aws", "azure", "alibaba", "gcp", "generic"},
			help: "the cloud this machine runs on",
		},
		{
			key: keyService, kept: true, flag: "service", arg: "KIND", def: "auto", words: []string{"auto", "systemd", "none"},
			help: "how Ant Media Server is started and stopped; none leaves it alone, and is implied by --root",
		},
		{
			key: keyServiceCommand, kept: true, flag: "service-command", arg: "COMMAND", check: checkCommand,
			help: "a command called with start, stop, restart or status, instead of systemd",
		},
		{
			key: keyRemoteIPValve, kept: true, flag: "remote-ip-valve", arg: "WHAT", def: "auto", words: []string{"keep", "remove", "auto"},
			help: "Tomcat's RemoteIpValve; auto removes it on Azure, whose gateway sends a header that makes it answer 403",
		},
		{
			key: keyTimeout, flag: "timeout", arg: "DURATION", def: "5m", check: checkDuration(24 * time.Hour),
			help: "how long to wait for the outcome",
		},
		{
			key: keyOnFailure, flag: "on-failure", arg: "WHAT", def: "rollback", words: []string{"rollback", "keep"},
			help: "what happens to the changes of a join that fails",
		},
		{
			key: keyAutoJoin, arg: "WHEN", def: "true", words: booleans(),
			help: "whether the daemon lets a machine that never joined join by itself, where it is told where MongoDB is; after one that failed and had restarted the server it waits 15 s, then an hour each time, or until `amsagent join` or `systemctl reload amsagent`",
		},
		{
			key: keyBeatInterval, flag: "beat-interval", arg: "DURATION", def: "5s", check: checkDuration(time.Minute),
			help: "the time from one heartbeat to the next; a node is called silent after two and a second",
		},
		{
			key: keyMetrics, flag: "metrics-address", arg: "HOST:PORT", def: "127.0.0.1:9771", check: checkListen,
			help: "where the daemon serves /metrics, /readyz and /healthz; off for nowhere; :9771 alone is refused: to open a port without a login to every network, say so by 0.0.0.0:9771",
		},
		{
			key: keyAgentCheck, arg: "HOST:PORT", def: "off", check: checkListen,
			help: "where the daemon answers the agent checks of HAProxy, as in 0.0.0.0:9772; off for nowhere",
		},
		{
			key: keyServing, arg: "APPLICATION,...", check: checkServing,
			help: "the applications that are to serve before this node is ready, as names or patterns (live*); where unset, all but the console",
		},
		{
			key: keyUnhealthyAfter, arg: "DURATION", def: "5m", check: checkDuration(24 * time.Hour),
			help: "how long this machine may fail to serve, by a cause of its own, before /healthz says so; longer than a restart of Ant Media Server takes",
		},
		{
			key: keyDrainDeadline, kept: true, flag: "drain-deadline", arg: "DURATION", def: "1h", tag: "drain-deadline", check: checkDuration(mostDrain),
			help: "how long a node that drains waits for its sessions; a cloud's own deadline may be earlier",
		},
		{
			key: keyRemoteDrain, arg: "WHEN", def: "true", words: booleans(),
			help: "whether `amsagent drain NODE` on another machine may drain this node; a drain on this machine and the cloud's notices always may",
		},
		{
			key: keyHooks, kept: true, flag: "hooks", arg: "NAME,...", check: checkHooks,
			help: "the lifecycle hooks of the group that are this agent's to keep waiting and to complete, as names or patterns (amsagent-*); where unset, the only one of a transition, and of several those that it used before or whose name contains amsagent",
		},
		{
			key: keyOutput, flag: "output", short: "o", global: true, arg: "FORMAT", def: "text", words: []string{"text", "json"},
			help: "form of the result and of errors",
		},
		{
			key: keyRoot, flag: "root", global: true, arg: "DIR", noFile: true, check: checkNonEmpty,
			help: "work on the tree below DIR: every path read or written is taken from there, and no service is touched",
		},
		{
			key: keyConfig, flag: "config", global: true, arg: "FILE", def: "/etc/amsagent/config.yaml", noFile: true, check: checkNonEmpty,
			help: "the settings file",
		},
		{
			key: keyLogLevel, flag: "log-level", global: true, arg: "LEVEL", def: "info", words: []string{"debug", "info", "warn", "error"},
			help: "how much is said on stderr",
		},
		{
			key: keyColor, flag: "color", global: true, arg: "WHEN", def: "auto", words: []string{"auto", "always", "never"},
			help: "color; auto is on a terminal where NO_COLOR is not set",
		},
	}
})

func settingByKey(key string) (setting, bool) {
	for _, s := range settingsTable() {
		if s.key == key {
			return s, true
		}
	}
	return setting{}, false
}

// canonical checks a value against the row: its words, or its check.
func (s setting) canonical(value string) (string, error) {
	switch {
	case value == "":
		return "", errors.New("the value is empty")
	case s.words != nil:
		if slices.Equal(s.words, booleans()) {
			// As YAML has it, in any case; older versions of YAML also read the other words so.
			value = strings.ToLower(value)
			switch value {
			case "yes", "on":
				value = "true"
			case "no", "off":
				value = "false"
			}
		}
		if slices.Contains(s.words, value) {
			return value, nil
		}
		return "", valueError{text: fmt.Sprintf("%q is not one of %s", value, strings.Join(s.words, ", "))}
	case s.check != nil:
		return s.check(value)
	}
	return value, nil
}

// valueError is what is wrong with a value, with what to do about it.
type valueError struct {
	text  string
	hints []string
}

func (p valueError) Error() string { return p.text }

func checkNonEmpty(v string) (string, error) { return v, nil }

const maxRole = 63

var roleWord = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func checkRole(v string) (string, error) {
	// The length apart: a repetition up to a count makes a large program of a regular expression.
	if len(v) > maxRole || !roleWord.MatchString(v) {
		return "", valueError{
			text:  fmt.Sprintf("%q is not a role", v),
			hints: []string{"a role is one word of letters, digits, dot, dash and underscore, at most 63: origin, edge"},
		}
	}
	// "Edge" and "edge" mean the same, and the agent compares roles.
	return strings.ToLower(v), nil
}

// maxGroup is the longest name that any of the clouds allows for a scaling group (AWS: 255).
const maxGroup = 255

func checkGroup(v string) (string, error) {
	if len(v) > maxGroup || strings.TrimSpace(v) != v || strings.ContainsFunc(v, unicode.IsControl) {
		return "", valueError{
			text:  fmt.Sprintf("%q is not a group name", v),
			hints: []string{fmt.Sprintf("a group is a name of at most %d characters, without control characters or blanks around it", maxGroup)},
		}
	}
	return v, nil
}

func checkAddress(v string) (string, error) {
	a, err := netip.ParseAddr(v)
	hint := []string{"give one IP address of this machine, such as 10.0.1.5"}
	switch {
	case err != nil:
		return "", valueError{text: fmt.Sprintf("%q is not an IP address", v), hints: hint}
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "", valueError{text: fmt.Sprintf("%s is not the address of one machine", a), hints: hint}
	case a.Zone() != "":
		return "", valueError{text: fmt.Sprintf("%s has a zone; other nodes cannot use it", a), hints: hint}
	}
	return a.Unmap().String(), nil
}

func checkAbsPath(v string) (string, error) {
	if !filepath.IsAbs(v) {
		return "", valueError{text: fmt.Sprintf("%q is not an absolute path", v)}
	}
	return filepath.Clean(v), nil
}

const maxRelease = 60

var releaseWord = regexp.MustCompile(`^[0-9]{1,4}(\.[0-9]{1,4}){1,3}([-+._][0-9A-Za-z.-]+)?$`)

func checkRelease(v string) (string, error) {
	if len(v) > maxRelease || !releaseWord.MatchString(v) {
		return "", valueError{text: fmt.Sprintf("%q is not a release of Ant Media Server", v), hints: []string{"a release looks like 2.14.0 or 3.0.3"}}
	}
	return v, nil
}

func checkCommand(v string) (string, error) {
	if strings.TrimSpace(v) == "" || strings.ContainsAny(v, "\x00\n\r") {
		return "", valueError{text: fmt.Sprintf("%q is not a command", v)}
	}
	return v, nil
}

// checkDuration accepts a duration from a second on: nothing here is done more often, or sooner.
func checkDuration(most time.Duration) func(string) (string, error) {
	const least = time.Second
	return func(v string) (string, error) {
		d, err := time.ParseDuration(v)
		switch {
		case err != nil:
			return "", valueError{text: fmt.Sprintf("%q is not a duration", v), hints: []string{"a duration looks like 90s, 5m or 1h30m"}}
		case d < least || d > most:
			return "", valueError{text: fmt.Sprintf("%s is outside %s to %s", v, shortDuration(least), shortDuration(most))}
		}
		return shortDuration(d), nil
	}
}

// mostDrain is the most that a node may wait for its sessions: a cloud's hook waits no longer.
const mostDrain = 48 * time.Hour

// checkListen accepts a literal address to listen on: a name may not resolve yet.
func checkListen(v string) (string, error) {
	if v == "off" {
		return v, nil
	}
	if strings.HasPrefix(v, ":") {
		// Other programs take that for every address of the machine. Opening the port to the network must be explicit.
		return "", valueError{
			text:  fmt.Sprintf("%q names no address to listen on", v),
			hints: []string{fmt.Sprintf("0.0.0.0%s for every address of this machine, 127.0.0.1%[1]s for this machine alone", v)},
		}
	}
	a, err := netip.ParseAddrPort(v)
	if err != nil || a.Addr().Zone() != "" {
		return "", valueError{text: fmt.Sprintf("%q is no address to listen on", v), hints: []string{"such as 127.0.0.1:9771, [::]:9771, or off"}}
	}
	return a.String(), nil
}

// checkServing accepts a list of names of applications, or patterns of them.
func checkServing(v string) (string, error) {
	var list []string
	for part := range strings.SplitSeq(v, ",") {
		name := strings.TrimSpace(part)
		if _, err := path.Match(name, "LiveApp"); err != nil || name == "" || strings.Contains(name, "/") {
			return "", valueError{text: fmt.Sprintf("%q is no application, and no pattern of one", part), hints: []string{"such as LiveApp,live*"}}
		}
		list = append(list, name)
	}
	return strings.Join(list, ","), nil
}

// checkHooks accepts a list of names of hooks, or patterns of them. No cloud has a comma in such a name.
func checkHooks(v string) (string, error) {
	var list []string
	for part := range strings.SplitSeq(v, ",") {
		name := strings.TrimSpace(part)
		if _, err := path.Match(name, "drain"); err != nil || name == "" || len(name) > maxGroup || strings.ContainsFunc(name, unicode.IsControl) {
			return "", valueError{text: fmt.Sprintf("%q is no name of a hook, and no pattern of one", part), hints: []string{"such as amsagent-drain,amsagent-launch or amsagent-*"}}
		}
		list = append(list, name)
	}
	return strings.Join(list, ","), nil
}

// checkOrigin accepts scheme, host and port only: the paths are ours, and one in the setting would be added to them.
func checkOrigin(v string) (string, error) {
	hint := []string{"give an origin without a path, such as http://127.0.0.1:1338"}
	u, err := url.Parse(v)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.Opaque != "":
		return "", valueError{text: "not an http or https origin", hints: hint}
	case u.User != nil:
		return "", valueError{text: "an origin has no user and password", hints: hint}
	case (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", valueError{text: fmt.Sprintf("%q has more than an origin", v), hints: hint}
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return "", valueError{text: fmt.Sprintf("%q has no usable port", v), hints: hint}
		}
	} else if strings.HasSuffix(u.Host, ":") {
		return "", valueError{text: fmt.Sprintf("%q has no usable port", v), hints: hint}
	}
	return u.Scheme + "://" + u.Host, nil
}

// checkMongo checks the syntax only; file:PATH is read when a command needs it (see mongo.go).
func checkMongo(v string) (string, error) {
	v = strings.TrimSpace(v)
	if path, ok := filePath(v); ok {
		if path == pipePath {
			return v, nil
		}
		if !filepath.IsAbs(path) {
			return "", valueError{text: fmt.Sprintf("file:%s is not an absolute path", path), hints: []string{"write file:/etc/amsagent/mongo"}}
		}
		return "file:" + filepath.Clean(path), nil
	}
	switch v {
	case "":
		return "", errors.New("the value is empty")
	case pipePath:
		return "", valueError{text: `"-" is not a host`, hints: []string{"write file:- to read the address from standard input"}}
	}
	if _, err := cluster.ParseTarget(v); err != nil {
		return "", err
	}
	return v, nil
}

// pipePath is standard input in the place of a file: a pipe from a cloud's vault shows the password to nobody.
const pipePath = "-"

// filePath takes the path out of file:PATH; file:///PATH, as a URL is written, means the same.
func filePath(v string) (string, bool) {
	path, ok := strings.CutPrefix(v, "file:")
	if !ok {
		return "", false
	}
	if strings.HasPrefix(path, "///") {
		path = path[2:]
	}
	return path, true
}

func hasPassword(v string) bool {
	t, err := cluster.ParseTarget(v)
	if err != nil {
		// What does not parse but has an @ is treated as if it had one: the advice about passwords comes first.
		return strings.Contains(v, "@")
	}
	return len(t.Secrets()) > 0
}

// shortDuration is Go's spelling without the zeros at its end: 5m0s is 5m. It can be typed back into a flag.
func shortDuration(d time.Duration) string {
	s := d.String()
	if t, ok := strings.CutSuffix(s, "m0s"); ok {
		s = t + "m"
	}
	if t, ok := strings.CutSuffix(s, "h0m"); ok {
		s = t + "h"
	}
	return s
}
