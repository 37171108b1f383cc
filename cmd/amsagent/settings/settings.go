// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package settings finds the value of each setting: a pure function of its sources, which are flags, environment, what an earlier
// join was given, config.yaml, instance tags and defaults.
package settings

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
)

// Layer is a kind of source. A higher layer wins over a lower one.
type Layer int

// The layers, from the lowest.
const (
	FromDefault    Layer = iota
	FromStored           // /etc/amsagent/mongo, which join wrote
	layerInstance        // the cloud's data about this instance, such as its scaling group
	FromTag              // an instance tag
	FromFile             // config.yaml
	FromGiven            // what an operator gave to join
	FromCredential       // systemd's credentials directory
	FromEnv
	FromFlag
	layerImplied // follows from another setting
)

func (l Layer) String() string {
	return [...]string{"default", "stored", "instance", "tag", "file", "given", "credential", "env", "flag", "implied"}[l]
}

// MarshalText lets JSON carry the word.
func (l Layer) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Origin is the place of a value, exact enough to change it there.
type Origin struct {
	Layer Layer `json:"layer"`
	// Name is the flag, the variable, the file or the tag.
	Name string `json:"name,omitempty"`
	Line int    `json:"line,omitempty"`
}

func (o Origin) String() string {
	switch o.Layer {
	case FromDefault:
		return "default"
	case FromFile:
		return fmt.Sprintf("%s:%d", o.Name, o.Line)
	case FromTag:
		return "instance tag " + o.Name
	case layerInstance:
		return "instance: " + o.Name
	case layerImplied:
		return "implied by " + o.Name
	case FromGiven:
		return "given to join"
	case FromStored, FromCredential, FromEnv, FromFlag:
	}
	return o.Name
}

// Fault is the error of a value from there.
func (o Origin) Fault(err error) *Error {
	return &Error{Source: o.String(), Layer: o.Layer, Line: o.Line, Err: err}
}

// Value is a setting's text in canonical spelling, with its origin. Text "" is: not set.
type Value struct {
	Text   string
	Origin Origin
}

// Settings are the effective settings of one run.
type Settings struct {
	Sources Sources
	Values  map[string]Value

	// Mongo is as given, possibly file:PATH, possibly with a password: use globals.mongo, never print it.
	Mongo          string
	Role           string
	Group          string
	Address        string
	AMSDir         string
	AMSRelease     string
	Provider       string
	Service        string
	ServiceCommand string
	RemoteIPValve  string
	Timeout        time.Duration
	OnFailure      string
	AutoJoin       bool
	BeatInterval   time.Duration
	// Metrics and AgentCheck are host:port, or off.
	Metrics, AgentCheck string
	// Hooks name the hooks of the group that are ours.
	Hooks []string
	// Serving are patterns of the applications that must serve; without any, all must.
	Serving        []string
	UnhealthyAfter time.Duration
	DrainDeadline  time.Duration
	RemoteDrain    bool
	// Root is absolute, "" for the real one.
	Root     string
	Config   string
	Output   string
	LogLevel slog.Level
	Color    string
	// Endpoints has the origin of each service of a cloud that is not at its usual address.
	Endpoints map[string]string

	Warnings []string
}

// Origin is the source of a setting's value.
func (s *Settings) Origin(key string) Origin { return s.Values[key].Origin }

// Error is one wrong value with its source: a flag, a variable, or a line of a file.
type Error struct {
	Source string
	Layer  Layer
	Line   int
	Err    error
	Hints  []string
	// ID is "" for that of the layer.
	ID string
	// unknownKey: the rest of config.yaml can be used without that line.
	unknownKey bool
}

func (e *Error) Error() string {
	text := e.Err.Error()
	var te *cluster.TargetError
	if errors.As(e.Err, &te) && te.Hint != "" {
		text = strings.TrimSuffix(text, "; "+te.Hint) // the hint has a line of its own
	}
	if e.Source == "" {
		return text
	}
	return e.Source + ": " + text
}

func (e *Error) Unwrap() error { return e.Err }

// Is makes a malformed tag [bootstrap.ErrTags].
func (e *Error) Is(target error) bool {
	return target == bootstrap.ErrTags && e.Layer == FromTag
}

// Any reports whether one of the joined errors is a wrong setting for which cond holds.
func Any(err error, cond func(*Error) bool) bool {
	return slices.ContainsFunc(Flatten(err), func(e error) bool {
		var se *Error
		return errors.As(e, &se) && cond(se)
	})
}

// Flatten splits what errors.Join joined, at any depth.
func Flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	var texts []string
	for _, e := range joined.Unwrap() {
		all = append(all, Flatten(e)...)
		texts = append(texts, e.Error())
	}
	if err.Error() != strings.Join(texts, "\n") {
		return []error{err}
	}
	return all
}

// AllHints returns the hints, also those of the cause.
func (e *Error) AllHints() []string {
	hints := slices.Clone(e.Hints)
	var ve ValueError
	if errors.As(e.Err, &ve) {
		hints = append(hints, ve.Hints...)
	}
	var te *cluster.TargetError
	if errors.As(e.Err, &te) && te.Hint != "" {
		hints = append(hints, te.Hint)
	}
	return hints
}

// Flag is a flag as it stood on the command line.
type Flag struct {
	Text string
	Name string
}

// Sources is all that settings are made from.
type Sources struct {
	Flags     map[string]Flag
	LookupEnv func(string) (string, bool)
	Environ   func() []string
	// File is config.yaml or its last good version, or nil; Wrong is a fault that stops nothing, Instead what applies.
	File    *ConfigFile
	Wrong   error
	Instead string
	// Given is from an earlier join, Damaged why it cannot be used; Dropped are the keys of which this one keeps nothing.
	Given   bootstrap.Given
	Damaged string
	Dropped []string
	// tags are checked, by key; group is the cloud's scaling group.
	tags  map[string]Value
	group string
	Root  *string // absolute; nil before it is looked up
	// Only limits the keys; nil means all.
	Only func(Setting) bool
}

// getenv returns a variable; an empty one counts as not set.
func (src Sources) getenv(name string) string {
	v, _ := src.LookupEnv(name)
	return v
}

// Resolve applies flag > environment > given to join > file > tag > instance > default. It checks hidden values, too,
// and returns all problems, joined, with settings that lack the wrong values.
func Resolve(src Sources) (*Settings, error) {
	s := &Settings{Sources: src, Values: map[string]Value{}}
	var errs []error
	for _, row := range Table() {
		if src.Only != nil && !src.Only(row) {
			continue
		}
		set := func(text string, o Origin) {
			canon, err := row.Canonical(text)
			if err != nil {
				errs = append(errs, o.Fault(err))
				return
			}
			s.Values[row.Key] = Value{Text: canon, Origin: o}
		}

		// The lowest layer first.
		s.Values[row.Key] = Value{Text: row.Def}
		if row.Key == KeyGroup && src.group != "" {
			s.Values[row.Key] = Value{Text: src.group, Origin: Origin{Layer: layerInstance, Name: "scaling group"}}
		}
		if v, ok := src.tags[row.Key]; ok {
			s.Values[row.Key] = v
		}
		if src.File != nil {
			if v, ok := src.File.values[row.Key]; ok {
				set(v.text, Origin{Layer: FromFile, Name: src.File.path, Line: v.line})
			}
		}
		if v, ok := src.Given.Settings[row.Key]; ok && row.kept && !slices.Contains(src.Dropped, row.Key) {
			if canon, err := row.Canonical(v); err != nil {
				s.Warnings = append(s.Warnings, fmt.Sprintf("%s, given to join, is not used: %v", row.Key, err))
			} else {
				s.Values[row.Key] = Value{Text: canon, Origin: Origin{Layer: FromGiven}}
			}
		}
		// https://no-color.org: any value but the empty one means no color.
		if row.Key == KeyColor && src.getenv("NO_COLOR") != "" {
			set("never", Origin{Layer: FromEnv, Name: "NO_COLOR"})
		}
		if v := src.getenv(row.Env()); v != "" {
			set(v, Origin{Layer: FromEnv, Name: row.Env()})
		}
		if g, ok := src.Flags[row.Key]; ok {
			set(g.Text, Origin{Layer: FromFlag, Name: g.Name})
		}
	}
	if src.Root != nil {
		s.Values[KeyRoot] = Value{Text: *src.Root, Origin: s.Origin(KeyRoot)}
	}
	if src.File != nil {
		errs = append(errs, src.File.errs...)
	}
	if src.Only == nil {
		errs = append(errs, s.implied()...)
		var bad []error
		s.Endpoints, bad = readEndpoints(src.getenv)
		errs = append(errs, bad...)
		s.Warnings = append(s.Warnings, misspeltVariables(src.Environ)...)
	}
	slices.SortStableFunc(errs, bySource)
	s.fill()
	return s, errors.Join(errs...)
}

// Read resolves all sources, files included. With an error the settings may be nil. Unless the command needs a good
// config.yaml, its unknown keys are left out, and with another fault its last good version counts.
func Read(src Sources, good bool) (*Settings, error) {
	early, _ := Resolve(src) // its errors come again
	root, err := findRoot(early)
	if err != nil {
		return nil, err
	}
	src.Root = &root
	var unread error
	src.File, unread = readConfigFile(root, early.Config, early.Origin(KeyConfig))
	src.Given, src.Damaged = readGiven(root)
	s, err := Resolve(src)
	if err = errors.Join(unread, err); err == nil || good {
		return s, err
	}

	var wrong, others []error
	var bad *Error
	for _, e := range Flatten(err) {
		var se *Error
		if !errors.As(e, &se) || se.Layer != FromFile {
			others = append(others, e)
			continue
		}
		wrong = append(wrong, e)
		if bad == nil && !se.unknownKey {
			bad = se
		}
	}
	src.Wrong, src.Instead = errors.Join(wrong...), "left out"
	if bad != nil {
		var last *ConfigFile
		if early.Origin(KeyConfig).Layer == FromDefault {
			last, bad.Hints = src.lastGood(root, bad.Hints)
		}
		if last == nil {
			return s, err
		}
		src.File, src.Instead = last, "the last good one counts: "+last.path
	}
	s, _ = Resolve(src)
	return s, errors.Join(others...)
}

// findRoot makes --root absolute, "" for /. It must exist: a misspelt one would look like an empty machine.
func findRoot(s *Settings) (string, error) {
	if s.Root == "" {
		return "", nil
	}
	abs, err := filepath.Abs(s.Root)
	if err == nil {
		_, err = os.Stat(abs + "/") // fails for a file, too
	}
	if err != nil {
		return "", s.Origin(KeyRoot).Fault(err)
	}
	return strings.TrimSuffix(abs, "/"), nil
}

// lastGood returns the last good config.yaml, or nil. It adds a hint if that cannot be read.
func (src Sources) lastGood(root string, hints []string) (*ConfigFile, []string) {
	text, err := bootstrap.LoadGoodConfig(root)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, append(hints, "only root can read the last good config.yaml, if there is one: run it with sudo")
	case err != nil:
		return nil, append(hints, fmt.Sprintf("the last good config.yaml cannot be read: %v", err))
	case text == nil:
		return nil, hints
	}
	src.File = parseConfigFile(root+bootstrap.GoodConfigPath, text)
	src.File.errs = slices.DeleteFunc(src.File.errs, func(e error) bool {
		return Any(e, func(se *Error) bool { return se.unknownKey })
	})
	if _, err := Resolve(src); Any(err, func(se *Error) bool { return se.Layer == FromFile }) {
		return nil, hints
	}
	return src.File, hints
}

// WithTags adds the instance's tags and group. all: every tag could be read. A malformed tag is an error and keeps its former
// value; the other tags count.
func (s *Settings) WithTags(all bool, group string, tags map[string]string) (*Settings, error) {
	src := s.Sources
	src.group, src.tags = cmp.Or(group, src.group), map[string]Value{}
	var errs []error
	for _, row := range Table() {
		if row.Tag == "" {
			continue
		}
		v, known := s.Sources.tags[row.Key]
		name, text := findTag(tags, TagPrefix+row.Tag)
		if name != "" {
			o := Origin{Layer: FromTag, Name: name}
			canon, err := row.Canonical(text)
			if err == nil && row.Key == KeyMongo && strings.HasPrefix(canon, "file:") {
				// A user who writes tags must not choose a file for root to read.
				err = ValueError{Text: "a tag cannot name a file"}
			}
			if err != nil {
				errs = append(errs, o.Fault(err))
			} else {
				v, known = Value{Text: canon, Origin: o}, true
			}
		}
		if known && (name != "" || !all) { // else it was removed
			src.tags[row.Key] = v
		}
	}
	n, _ := Resolve(src) // its errors are known
	return n, errors.Join(errs...)
}

// findTag finds a tag that is not empty by its name, or by the same name with a dash, for clouds that allow no colon.
func findTag(tags map[string]string, name string) (found, text string) {
	for _, n := range []string{name, strings.ReplaceAll(name, ":", "-")} {
		if v := strings.TrimSpace(tags[n]); v != "" {
			return n, v
		}
	}
	return "", ""
}

// bySource puts the problems in an order that does not change between runs and that follows the lines of the file.
func bySource(a, b error) int {
	var x, y *Error
	if !errors.As(a, &x) || !errors.As(b, &y) {
		return 0
	}
	return cmp.Or(-cmp.Compare(x.Layer, y.Layer), cmp.Compare(x.Line, y.Line), cmp.Compare(x.Source, y.Source))
}

// implied applies the rules between settings.
func (s *Settings) implied() []error {
	service, command := s.Values[KeyService], s.Values[KeyServiceCommand]

	// A config.yaml in a tree below --root must not restart this machine's own server. Only the command line may.
	if s.Values[KeyRoot].Text != "" && s.Values[KeyRoot].Text != "/" {
		o := Origin{Layer: layerImplied, Name: "--root"}
		if service.Origin.Layer < FromEnv && command.Origin.Layer < FromEnv {
			s.Values[KeyService] = Value{Text: "none", Origin: o}
			s.Values[KeyServiceCommand] = Value{}
			return nil
		}
		if command.Origin.Layer < FromEnv {
			command = Value{}
		}
		if service.Origin.Layer < FromEnv {
			service = Value{Text: "auto"}
		}
	}

	// A command and a kind exclude each other; the higher layer wins, within one layer it is an error.
	if command.Text != "" && service.Text != "auto" {
		switch c := cmp.Compare(command.Origin.Layer, service.Origin.Layer); {
		case c > 0:
			service = Value{Text: "auto"}
		case c < 0:
			command = Value{}
		default:
			e := command.Origin.Fault(fmt.Errorf("cannot be combined with %s %s", service.Origin, service.Text))
			e.Hints = []string{"give a service command, or the kind of service, not both"}
			return []error{e}
		}
	}
	s.Values[KeyService], s.Values[KeyServiceCommand] = service, command
	return nil
}

// fill sets the typed fields from the checked texts.
func (s *Settings) fill() {
	for key, field := range map[string]*string{
		KeyMongo: &s.Mongo, KeyRole: &s.Role, KeyGroup: &s.Group, KeyAddress: &s.Address, KeyAMSDir: &s.AMSDir,
		KeyAMSRelease: &s.AMSRelease, KeyProvider: &s.Provider, KeyService: &s.Service, KeyServiceCommand: &s.ServiceCommand,
		KeyRemoteIPValve: &s.RemoteIPValve, KeyOnFailure: &s.OnFailure, KeyMetrics: &s.Metrics, KeyAgentCheck: &s.AgentCheck,
		KeyRoot: &s.Root, KeyConfig: &s.Config, KeyOutput: &s.Output, KeyColor: &s.Color,
	} {
		*field = s.Values[key].Text
	}
	for key, field := range map[string]*time.Duration{
		KeyTimeout: &s.Timeout, KeyBeatInterval: &s.BeatInterval, keyUnhealthyAfter: &s.UnhealthyAfter, KeyDrainDeadline: &s.DrainDeadline,
	} {
		*field, _ = time.ParseDuration(s.Values[key].Text)
	}
	for key, field := range map[string]*[]string{KeyServing: &s.Serving, KeyHooks: &s.Hooks} {
		if text := s.Values[key].Text; text != "" {
			*field = strings.Split(text, ",")
		}
	}
	s.AutoJoin, s.RemoteDrain = s.Values[keyAutoJoin].Text == "true", s.Values[keyRemoteDrain].Text == "true"
	_ = s.LogLevel.UnmarshalText([]byte(s.Values[KeyLogLevel].Text))
}

// TagPrefix begins the names of the instance tags that are settings.
const TagPrefix = "amsagent:"

// misspeltVariables returns warnings.
func misspeltVariables(environ func() []string) []string {
	var known, warnings []string
	for _, row := range Table() {
		known = append(known, strings.ToUpper(row.Key))
	}
	for _, e := range Endpoints() {
		known = append(known, strings.TrimPrefix(e.Env, EnvPrefix))
	}
	for _, kv := range environ() {
		name, _, _ := strings.Cut(kv, "=")
		word, ok := strings.CutPrefix(name, EnvPrefix)
		if !ok || slices.Contains(known, word) {
			continue
		}
		warnings = append(warnings, fmt.Sprintf("the variable %s is not a setting and has no effect", name))
	}
	slices.Sort(warnings)
	return warnings
}
