// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"cmp"
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

// EnvPrefix is the beginning of the names of variables.
const EnvPrefix = "AMSAGENT_"

// Keys of the settings, as config.yaml spells them.
const (
	KeyMongo          = "mongo"
	KeyRole           = "role"
	KeyGroup          = "group"
	KeyAddress        = "address"
	KeyAMSDir         = "ams_dir"
	KeyAMSRelease     = "ams_release"
	KeyProvider       = "provider"
	KeyService        = "service"
	KeyServiceCommand = "service_command"
	KeyRemoteIPValve  = "remote_ip_valve"
	KeyTimeout        = "timeout"
	KeyOnFailure      = "on_failure"
	keyAutoJoin       = "auto_join"
	KeyBeatInterval   = "beat_interval"
	KeyMetrics        = "metrics_address"
	KeyAgentCheck     = "agent_check_address"
	KeyServing        = "serving"
	keyUnhealthyAfter = "unhealthy_after"
	KeyDrainDeadline  = "drain_deadline"
	keyRemoteDrain    = "remote_drain"
	KeyRoot           = "root"
	KeyConfig         = "config"
	KeyOutput         = "output"
	KeyLogLevel       = "log_level"
	KeyColor          = "color"
	KeyHooks          = "hooks"
)

// Setting is one row of the table that flags, environment variables, config.yaml keys, instance tags and their
// documentation are all made from.
type Setting struct {
	Key  string
	Help string
	// Arg is the word for the value in help: --timeout DURATION.
	Arg string
	Def string
	// Flag is the long flag, "" for none; Short its letter; Global marks a flag of every command.
	Flag   string
	Short  string
	Global bool
	// kept: join keeps the value for the daemon and for later commands.
	kept bool
	// NoFile: it cannot be in config.yaml, because it decides which file that is.
	NoFile bool
	// Tag is the name after "amsagent:" for a setting that instance tags may have.
	Tag string
	// Words are the allowed values of a closed set.
	Words []string
	// Check returns the value in its one canonical spelling, without a look at the machine; nil accepts any value.
	Check func(value string) (string, error)
}

// Env is the variable of a setting: the prefix and the key.
func (s Setting) Env() string { return EnvPrefix + strings.ToUpper(s.Key) }

// list reports whether the value is a comma list.
func (s Setting) list() bool { return strings.HasSuffix(s.Arg, ",...") }

// booleans are the words of a setting that is on or off.
func booleans() []string { return []string{"true", "false"} }

// Table lists the settings in the order of `config`. It is only read.
var Table = sync.OnceValue(func() []Setting {
	return []Setting{
		{
			Key: KeyMongo, Flag: "mongo", Arg: "ADDRESS", Tag: "mongo", Check: checkMongo,
			Help: "the cluster's MongoDB: IP, host[:port], a comma list, mongodb://…, mongodb+srv://…, or file:PATH holding one of these (file:- is standard input, on the command line only); a password given here shows in the process list, one in a file does not",
		},
		{
			Key: KeyRole, kept: true, Flag: "role", Arg: "ROLE", Tag: "role", Check: checkRole,
			Help: "what this node is for: origin, edge, or a word of yours; capitals become small letters",
		},
		{
			Key: KeyGroup, kept: true, Flag: "group", Arg: "GROUP", Tag: "group", Check: checkGroup,
			Help: "the scaling group; where unset, the one the cloud names",
		},
		{
			Key: KeyAddress, kept: true, Flag: "address", Arg: "IP", Check: checkAddress,
			Help: "the address other nodes reach this one by; where unset, the private address the cloud names",
		},
		{
			Key: KeyAMSDir, kept: true, Flag: "ams-dir", Arg: "DIR", Def: "/usr/local/antmedia", Check: checkAbsPath,
			Help: "where Ant Media Server is installed",
		},
		{
			Key: KeyAMSRelease, kept: true, Flag: "ams-release", Arg: "RELEASE", Check: checkRelease,
			Help: "the release of Ant Media Server, if its jar does not have it",
		},
		{
			Key: KeyProvider, kept: true, Flag: "provider", Arg: "NAME", Def: "auto", Words: []string{"auto", "aws", "azure", "alibaba", "gcp", "generic"},
			Help: "the cloud this machine runs on",
		},
		{
			Key: KeyService, kept: true, Flag: "service", Arg: "KIND", Def: "auto", Words: []string{"auto", "systemd", "none"},
			Help: "how Ant Media Server is started and stopped; none leaves it alone, and is implied by --root",
		},
		{
			Key: KeyServiceCommand, kept: true, Flag: "service-command", Arg: "COMMAND", Check: checkCommand,
			Help: "a command called with start, stop, restart or status, instead of systemd",
		},
		{
			Key: KeyRemoteIPValve, kept: true, Flag: "remote-ip-valve", Arg: "WHAT", Def: "auto", Words: []string{"keep", "remove", "auto"},
			Help: "Tomcat's RemoteIpValve; auto removes it on Azure, whose gateway sends a header that makes it answer 403",
		},
		{
			Key: KeyTimeout, Flag: "timeout", Arg: "DURATION", Def: "5m", Check: checkDuration(24 * time.Hour),
			Help: "how long to wait for the outcome",
		},
		{
			Key: KeyOnFailure, Flag: "on-failure", Arg: "WHAT", Def: "rollback", Words: []string{"rollback", "keep"},
			Help: "what happens to the changes of a join that fails",
		},
		{
			Key: keyAutoJoin, Arg: "WHEN", Def: "true", Words: booleans(),
			Help: "whether the daemon lets a machine that never joined join by itself, once it knows MongoDB's address; after one that failed and had restarted the server it waits 15 s, then an hour each time, or until `amsagent join` or `systemctl reload amsagent`",
		},
		{
			Key: KeyBeatInterval, Flag: "beat-interval", Arg: "DURATION", Def: "5s", Check: checkDuration(time.Minute),
			Help: "the time from one heartbeat to the next; a node is called silent after two and a second",
		},
		{
			Key: KeyMetrics, Flag: "metrics-address", Arg: "HOST:PORT", Def: "127.0.0.1:9771", Check: CheckListen,
			Help: "where the daemon serves /metrics, /readyz and /healthz; off for nowhere; :9771 alone is refused: to open a port without a login to every network, say so by 0.0.0.0:9771",
		},
		{
			Key: KeyAgentCheck, Arg: "HOST:PORT", Def: "off", Check: CheckListen,
			Help: "where the daemon answers the agent checks of HAProxy, as in 0.0.0.0:9772; off for nowhere",
		},
		{
			Key: KeyServing, Arg: "APPLICATION,...", Check: checkPatterns("an application", "LiveApp,live*", "/"),
			Help: "the applications that must serve before this node is ready, as names or patterns (live*); if unset, all but the console",
		},
		{
			Key: keyUnhealthyAfter, Arg: "DURATION", Def: "5m", Check: checkDuration(24 * time.Hour),
			Help: "how long this machine may fail to serve, by a cause of its own, before /healthz says so; longer than a restart of Ant Media Server takes",
		},
		{
			Key: KeyDrainDeadline, kept: true, Flag: "drain-deadline", Arg: "DURATION", Def: "1h", Tag: "drain-deadline", Check: checkDuration(mostDrain),
			Help: "how long a node that drains waits for its sessions; a cloud's own deadline may be earlier",
		},
		{
			Key: keyRemoteDrain, Arg: "WHEN", Def: "true", Words: booleans(),
			Help: "whether `amsagent drain NODE` on another machine may drain this node; a drain on this machine and the cloud's notices always may",
		},
		{
			Key: KeyHooks, kept: true, Flag: "hooks", Arg: "NAME,...", Check: checkPatterns("a hook", "amsagent-drain,amsagent-launch or amsagent-*", ""),
			Help: "the lifecycle hooks of the group that are this agent's to keep waiting and to complete, as names or patterns (amsagent-*); where unset, the only one of a transition, and of several those that it used before or whose name contains amsagent",
		},
		{
			Key: KeyOutput, Flag: "output", Short: "o", Global: true, Arg: "FORMAT", Def: "text", Words: []string{"text", "json"},
			Help: "form of the result and of errors",
		},
		{
			Key: KeyRoot, Flag: "root", Global: true, Arg: "DIR", NoFile: true,
			Help: "work on the tree below DIR: every path read or written is taken from there, and no service is touched",
		},
		{
			Key: KeyConfig, Flag: "config", Global: true, Arg: "FILE", Def: "/etc/amsagent/config.yaml", NoFile: true,
			Help: "the settings file",
		},
		{
			Key: KeyLogLevel, Flag: "log-level", Global: true, Arg: "LEVEL", Def: "info", Words: []string{"debug", "info", "warn", "error"},
			Help: "how much is said on stderr",
		},
		{
			Key: KeyColor, Flag: "color", Global: true, Arg: "WHEN", Def: "auto", Words: []string{"auto", "always", "never"},
			Help: "color; auto is on a terminal where NO_COLOR is not set",
		},
	}
})

// ByKey finds a setting.
func ByKey(key string) (Setting, bool) {
	for _, s := range Table() {
		if s.Key == key {
			return s, true
		}
	}
	return Setting{}, false
}

// Canonical checks a value against the row: its words, or its check.
func (s Setting) Canonical(value string) (string, error) {
	switch {
	case value == "":
		return "", errors.New("the value is empty")
	case s.Words != nil:
		if slices.Equal(s.Words, booleans()) {
			// YAML reads any case; its older versions also read the other words so.
			value = strings.ToLower(value)
			switch value {
			case "yes", "on":
				value = "true"
			case "no", "off":
				value = "false"
			}
		}
		if slices.Contains(s.Words, value) {
			return value, nil
		}
		return "", ValueError{Text: fmt.Sprintf("%q is not one of %s", value, strings.Join(s.Words, ", "))}
	case s.Check != nil:
		return s.Check(value)
	}
	return value, nil
}

// ValueError is the fault of a value.
type ValueError struct {
	Text  string
	Hints []string
}

func (p ValueError) Error() string { return p.Text }

const maxRole = 63

var roleWord = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func checkRole(v string) (string, error) {
	// The length is not in the expression: a repetition up to a count compiles to a large program.
	if len(v) > maxRole || !roleWord.MatchString(v) {
		return "", ValueError{
			Text:  fmt.Sprintf("%q is not a role", v),
			Hints: []string{"a role is a single word of letters, digits, dot, dash and underscore, at most 63: origin, edge"},
		}
	}
	return strings.ToLower(v), nil // the agent compares roles
}

// maxGroup is the longest name that any of the clouds allows for a scaling group (AWS: 255).
const maxGroup = 255

func checkGroup(v string) (string, error) {
	if len(v) > maxGroup || strings.TrimSpace(v) != v || strings.ContainsFunc(v, unicode.IsControl) {
		return "", ValueError{
			Text:  fmt.Sprintf("%q is not a group name", v),
			Hints: []string{fmt.Sprintf("a group is a name of at most %d characters, without control characters, and no spaces around it", maxGroup)},
		}
	}
	return v, nil
}

func checkAddress(v string) (string, error) {
	a, err := netip.ParseAddr(v)
	hint := []string{"give one IP address of this machine, such as 10.0.1.5"}
	switch {
	case err != nil:
		return "", ValueError{Text: fmt.Sprintf("%q is not an IP address", v), Hints: hint}
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "", ValueError{Text: fmt.Sprintf("%s is not the address of one machine", a), Hints: hint}
	case a.Zone() != "":
		return "", ValueError{Text: fmt.Sprintf("%s has a zone; other nodes cannot use it", a), Hints: hint}
	}
	return a.Unmap().String(), nil
}

func checkAbsPath(v string) (string, error) {
	if !filepath.IsAbs(v) {
		return "", ValueError{Text: fmt.Sprintf("%q is not an absolute path", v)}
	}
	return filepath.Clean(v), nil
}

const maxRelease = 60

var releaseWord = regexp.MustCompile(`^[0-9]{1,4}(\.[0-9]{1,4}){1,3}([-+._][0-9A-Za-z.-]+)?$`)

func checkRelease(v string) (string, error) {
	if len(v) > maxRelease || !releaseWord.MatchString(v) {
		return "", ValueError{Text: fmt.Sprintf("%q is not a release of Ant Media Server", v), Hints: []string{"a release looks like 2.14.0 or 3.0.3"}}
	}
	return v, nil
}

func checkCommand(v string) (string, error) {
	if strings.TrimSpace(v) == "" || strings.ContainsAny(v, "\x00\n\r") {
		return "", ValueError{Text: fmt.Sprintf("%q is not a command", v)}
	}
	return v, nil
}

// checkDuration accepts a duration of a second or more.
func checkDuration(most time.Duration) func(string) (string, error) {
	const least = time.Second
	return func(v string) (string, error) {
		d, err := time.ParseDuration(v)
		switch {
		case err != nil:
			return "", ValueError{Text: fmt.Sprintf("%q is not a duration", v), Hints: []string{"a duration looks like 90s, 5m or 1h30m"}}
		case d < least || d > most:
			return "", ValueError{Text: fmt.Sprintf("%s is outside %s to %s", v, ShortDuration(least), ShortDuration(most))}
		}
		return ShortDuration(d), nil
	}
}

// mostDrain is the longest drain: a cloud's hook waits no longer.
const mostDrain = 48 * time.Hour

// CheckListen accepts a literal address to listen on: a name may not resolve yet.
func CheckListen(v string) (string, error) {
	if v == "off" {
		return v, nil
	}
	if strings.HasPrefix(v, ":") {
		// Other programs listen at every address then. Opening the port to the network must be explicit.
		return "", ValueError{
			Text:  fmt.Sprintf("%q names no address to listen on", v),
			Hints: []string{fmt.Sprintf("0.0.0.0%s for every address of this machine, 127.0.0.1%[1]s for this machine alone", v)},
		}
	}
	a, err := netip.ParseAddrPort(v)
	if err != nil || a.Addr().Zone() != "" {
		return "", ValueError{Text: fmt.Sprintf("%q is no address to listen on", v), Hints: []string{"such as 127.0.0.1:9771, [::]:9771, or off"}}
	}
	return a.String(), nil
}

// checkPatterns accepts a comma list of names, or of patterns of them, without some characters. No name has a comma.
func checkPatterns(what, example, without string) func(string) (string, error) {
	return func(v string) (string, error) {
		var list []string
		for part := range strings.SplitSeq(v, ",") {
			name := strings.TrimSpace(part)
			_, err := path.Match(name, "x")
			if err != nil || name == "" || len(name) > maxGroup || strings.ContainsAny(name, without) || strings.ContainsFunc(name, unicode.IsControl) {
				return "", ValueError{Text: fmt.Sprintf("%q is not the name of %s, nor a pattern of one", part, what), Hints: []string{"such as " + example}}
			}
			list = append(list, name)
		}
		return strings.Join(list, ","), nil
	}
}

// checkOrigin accepts scheme, host and port only: the agent adds the paths.
func checkOrigin(v string) (string, error) {
	hint := []string{"give an origin without a path, such as http://127.0.0.1:1338"}
	u, err := url.Parse(v)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.Opaque != "":
		return "", ValueError{Text: "not an http or https origin", Hints: hint}
	case u.User != nil:
		return "", ValueError{Text: "an origin has no user and password", Hints: hint}
	case (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", ValueError{Text: fmt.Sprintf("%q has more than an origin", v), Hints: hint}
	}
	n, err := strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16)
	if err != nil || n == 0 || strings.HasSuffix(u.Host, ":") {
		return "", ValueError{Text: fmt.Sprintf("%q has no usable port", v), Hints: hint}
	}
	return u.Scheme + "://" + u.Host, nil
}

// checkMongo checks the syntax only; file:PATH is read when a command needs it (see mongo.go).
func checkMongo(v string) (string, error) {
	v = strings.TrimSpace(v)
	if path, ok := FilePath(v); ok {
		if path == PipePath {
			return v, nil
		}
		if !filepath.IsAbs(path) {
			return "", ValueError{Text: fmt.Sprintf("file:%s is not an absolute path", path), Hints: []string{"write file:/etc/amsagent/mongo"}}
		}
		return "file:" + filepath.Clean(path), nil
	}
	switch v {
	case "":
		return "", errors.New("the value is empty")
	case PipePath:
		return "", ValueError{Text: `"-" is not a host`, Hints: []string{"write file:- to read the address from standard input"}}
	}
	if _, err := cluster.ParseTarget(v); err != nil {
		return "", err
	}
	return v, nil
}

// PipePath is standard input in the place of a file: a pipe from a cloud's vault keeps the password out of files.
const PipePath = "-"

// FilePath takes the path out of file:PATH; file:///PATH, as a URL is written, means the same.
func FilePath(v string) (string, bool) {
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
		// The advice about passwords comes first, also if the address is wrong.
		return strings.Contains(v, "@")
	}
	return len(t.Secrets()) > 0
}

// ShortDuration is Go's spelling without the zeros at its end: 5m0s is 5m. It can be typed back into a flag.
func ShortDuration(d time.Duration) string {
	s := d.String()
	if t, ok := strings.CutSuffix(s, "m0s"); ok {
		s = t + "m"
	}
	if t, ok := strings.CutSuffix(s, "h0m"); ok {
		s = t + "h"
	}
	return s
}
