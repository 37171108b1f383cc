// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

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

// layer says where a value comes from. A higher layer wins over a lower one.
type layer int

const (
	layerDefault    layer = iota
	layerStored           // /etc/amsagent/mongo, which join wrote
	layerInstance         // what the cloud says about this instance, such as its scaling group
	layerTag              // an instance tag
	layerFile             // config.yaml
	layerGiven            // what an operator gave to join
	layerCredential       // systemd's credentials directory
	layerEnv
	layerFlag
	layerImplied // follows from another setting
)

func (l layer) String() string {
	return [...]string{"default", "stored", "instance", "tag", "file", "given", "credential", "env", "flag", "implied"}[l]
}

// MarshalText lets JSON carry the word.
func (l layer) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// origin is where one value was found, exactly enough to go there and change it.
type origin struct {
	Layer layer `json:"layer"`
	// Name is the flag, the variable, the file or the tag.
	Name string `json:"name,omitempty"`
	Line int    `json:"line,omitempty"`
}

func (o origin) String() string {
	switch o.Layer {
	case layerDefault:
		return "default"
	case layerFile:
		return fmt.Sprintf("%s:%d", o.Name, o.Line)
	case layerTag:
		return "instance tag " + o.Name
	case layerInstance:
		return "instance: " + o.Name
	case layerImplied:
		return "implied by " + o.Name
	case layerGiven:
		return "given to join"
	case layerStored, layerCredential, layerEnv, layerFlag:
	}
	return o.Name
}

// value is a setting's text in canonical spelling, with its origin. Text "" is: not set.
type value struct {
	text   string
	origin origin
}

// settings are the effective settings of one run.
type settings struct {
	src    sources
	values map[string]value

	// Mongo is as given, possibly file:PATH, possibly with a password: use globals.mongo, never print it.
	Mongo   string
	Role    string
	Group   string
	Address string
	// Forced is the address that a join accepted although no interface has it.
	Forced         string
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
	// Serving are patterns of the applications that are to serve; none are all.
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

	warnings []string
}

func (s *settings) origin(key string) origin { return s.values[key].origin }

// settingError is one wrong value with its source: a flag, a variable, or a line of a file.
type settingError struct {
	source string
	layer  layer
	line   int
	err    error
	hints  []string
	// id is "" for the usual one of the layer.
	id string
	// unknownKey: the rest of config.yaml can be used without that line.
	unknownKey bool
}

func (e *settingError) Error() string {
	text := e.err.Error()
	var te *cluster.TargetError
	if errors.As(e.err, &te) && te.Hint != "" {
		text = strings.TrimSuffix(text, "; "+te.Hint) // it goes into a line of its own
	}
	if e.source == "" {
		return text
	}
	return e.source + ": " + text
}

func (e *settingError) Unwrap() error { return e.err }

// Is makes a malformed tag [bootstrap.ErrTags].
func (e *settingError) Is(target error) bool {
	return target == bootstrap.ErrTags && e.layer == layerTag
}

// anySetting reports whether one of the joined errors is a wrong setting for which cond holds.
func anySetting(err error, cond func(*settingError) bool) bool {
	return slices.ContainsFunc(flatten(err), func(e error) bool {
		var se *settingError
		return errors.As(e, &se) && cond(se)
	})
}

// flatten splits what errors.Join joined, at any depth.
func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	var texts []string
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
		texts = append(texts, e.Error())
	}
	if err.Error() != strings.Join(texts, "\n") {
		return []error{err}
	}
	return all
}

func (e *settingError) allHints() []string {
	hints := slices.Clone(e.hints)
	var ve valueError
	if errors.As(e.err, &ve) {
		hints = append(hints, ve.hints...)
	}
	var te *cluster.TargetError
	if errors.As(e.err, &te) && te.Hint != "" {
		hints = append(hints, te.Hint)
	}
	return hints
}

// given is a flag as it stood on the command line.
type given struct {
	text string
	name string
}

// sources is all that settings are made from.
type sources struct {
	flags     map[string]given
	lookupEnv func(string) (string, bool)
	environ   func() []string
	// file is config.yaml or its last good version, or nil; wrong a fault that stops nothing, instead what applies.
	file    *configFile
	wrong   error
	instead string
	// given is from an earlier join, damaged why it cannot be used; dropped are the keys of which this one keeps nothing.
	given   bootstrap.Given
	damaged string
	dropped []string
	// tags are checked, by key; group is the cloud's scaling group.
	tags  map[string]value
	group string
	root  *string // absolute; nil before it is looked up
	// only limits the keys looked at; nil means all.
	only func(setting) bool
}

// resolveSettings applies flag > environment > given to join > file > tag > instance > default. It checks hidden values, too,
// and returns all problems, joined, with settings that lack the wrong values.
func resolveSettings(src sources) (*settings, error) {
	s := &settings{src: src, values: map[string]value{}}
	var errs []error
	for _, row := range settingsTable() {
		if src.only != nil && !src.only(row) {
			continue
		}
		set := func(text string, o origin) {
			canon, err := row.canonical(text)
			if err != nil {
				errs = append(errs, &settingError{source: o.String(), layer: o.Layer, line: o.Line, err: err})
				return
			}
			s.values[row.key] = value{text: canon, origin: o}
		}

		// The lowest layer first.
		s.values[row.key] = value{text: row.def}
		if row.key == keyGroup && src.group != "" {
			s.values[row.key] = value{text: src.group, origin: origin{Layer: layerInstance, Name: "scaling group"}}
		}
		if v, ok := src.tags[row.key]; ok {
			s.values[row.key] = v
		}
		if src.file != nil {
			if v, ok := src.file.values[row.key]; ok {
				set(v.text, origin{Layer: layerFile, Name: src.file.path, Line: v.line})
			}
		}
		if v, ok := src.given.Settings[row.key]; ok && row.kept && !slices.Contains(src.dropped, row.key) {
			if canon, err := row.canonical(v); err != nil {
				s.warnings = append(s.warnings, fmt.Sprintf("%s, given to join, is not used: %v", row.key, err))
			} else {
				s.values[row.key] = value{text: canon, origin: origin{Layer: layerGiven}}
			}
		}
		// https://no-color.org: any value but the empty one means no color.
		if row.key == keyColor && lookupNonEmpty(src.lookupEnv, "NO_COLOR") != "" {
			set("never", origin{Layer: layerEnv, Name: "NO_COLOR"})
		}
		if v := lookupNonEmpty(src.lookupEnv, row.env()); v != "" {
			set(v, origin{Layer: layerEnv, Name: row.env()})
		}
		if g, ok := src.flags[row.key]; ok {
			set(g.text, origin{Layer: layerFlag, Name: g.name})
		}
	}
	if src.root != nil {
		s.values[keyRoot] = value{text: *src.root, origin: s.origin(keyRoot)}
	}
	if src.file != nil {
		errs = append(errs, src.file.errs...)
	}
	if src.only == nil {
		s.Forced = src.given.ForcedAddress
		errs = append(errs, s.implied()...)
		var bad []error
		s.Endpoints, bad = readEndpoints(src.lookupEnv)
		errs = append(errs, bad...)
		s.warnings = append(s.warnings, misspeltVariables(src.environ)...)
	}
	slices.SortStableFunc(errs, bySource)
	s.fill()
	return s, errors.Join(errs...)
}

// readSettings resolves all sources, files included. With an error the settings may be nil. Unless the command needs a good
// config.yaml, its unknown keys are left out, and with another fault its last good version counts.
func readSettings(src sources, good bool) (*settings, error) {
	early, _ := resolveSettings(src) // its errors come again
	root, err := findRoot(early)
	if err != nil {
		return nil, err
	}
	src.root = &root
	var named *origin
	if o := early.origin(keyConfig); o.Layer > layerDefault {
		named = &o
	}
	var unread error
	src.file, unread = readConfigFile(root, early.Config, named)
	src.given, src.damaged = readGiven(root)
	s, err := resolveSettings(src)
	if err = errors.Join(unread, err); err == nil || good {
		return s, err
	}

	var wrong, others []error
	var bad *settingError
	for _, e := range flatten(err) {
		var se *settingError
		if !errors.As(e, &se) || se.layer != layerFile {
			others = append(others, e)
			continue
		}
		wrong = append(wrong, e)
		if bad == nil && !se.unknownKey {
			bad = se
		}
	}
	src.wrong, src.instead = errors.Join(wrong...), "left out"
	if bad != nil {
		var last *configFile
		if named == nil {
			last, bad.hints = src.lastGood(root, bad.hints)
		}
		if last == nil {
			return s, err
		}
		src.file, src.instead = last, "the last good one counts: "+last.path
	}
	s, _ = resolveSettings(src)
	return s, errors.Join(others...)
}

// findRoot makes --root absolute and looks whether it is there: a misspelt one would look like an empty machine.
func findRoot(s *settings) (string, error) {
	if s.Root == "" {
		return "", nil
	}
	o := s.origin(keyRoot)
	fail := func(err error) (string, error) {
		return "", &settingError{source: o.String(), layer: o.Layer, err: err}
	}
	abs, err := filepath.Abs(s.Root)
	if err != nil {
		return fail(err)
	}
	if abs == "/" {
		return "", nil
	}
	info, err := os.Stat(abs)
	if err != nil {
		return fail(err)
	}
	if !info.IsDir() {
		return fail(fmt.Errorf("%s is not a directory", abs))
	}
	return abs, nil
}

// lastGood returns the last good config.yaml, or nil. It adds a hint if that cannot be read.
func (src sources) lastGood(root string, hints []string) (*configFile, []string) {
	text, err := bootstrap.LoadGoodConfig(root)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, append(hints, "only root can read the last good config.yaml, if there is one: run it with sudo")
	case err != nil:
		return nil, append(hints, fmt.Sprintf("the last good config.yaml cannot be read: %v", err))
	case text == nil:
		return nil, hints
	}
	src.file = parseConfigFile(root+bootstrap.GoodConfigPath, text)
	src.file.errs = slices.DeleteFunc(src.file.errs, func(e error) bool {
		return anySetting(e, func(se *settingError) bool { return se.unknownKey })
	})
	if _, err := resolveSettings(src); anySetting(err, func(se *settingError) bool { return se.layer == layerFile }) {
		return nil, hints
	}
	return src.file, hints
}

// withTags adds the instance's tags and group. all: every tag could be read. A malformed tag is an error and keeps its former
// value; the other tags count.
func (s *settings) withTags(all bool, group string, tags map[string]string) (*settings, error) {
	src := s.src
	src.group, src.tags = cmp.Or(group, src.group), map[string]value{}
	var errs []error
	for _, row := range settingsTable() {
		if row.tag == "" {
			continue
		}
		v, known := s.src.tags[row.key]
		name, text, found := findTag(tags, tagPrefix+row.tag)
		if found {
			o := origin{Layer: layerTag, Name: name}
			canon, err := row.canonical(text)
			if err == nil && row.key == keyMongo && strings.HasPrefix(canon, "file:") {
				// Who may write tags need not be who may choose which files of this machine root reads.
				err = valueError{text: "a tag cannot name a file"}
			}
			if err != nil {
				errs = append(errs, &settingError{source: o.String(), layer: o.Layer, err: err})
			} else {
				v, known = value{text: canon, origin: o}, true
			}
		}
		if known && (found || !all) { // else it may have been taken away
			src.tags[row.key] = v
		}
	}
	n, _ := resolveSettings(src) // its errors are known
	return n, errors.Join(errs...)
}

// findTag looks for a tag by its name, and by the same name with a dash for clouds that allow no colon. A
// blank tag counts as none.
func findTag(tags map[string]string, name string) (found, text string, ok bool) {
	for _, n := range []string{name, strings.ReplaceAll(name, ":", "-")} {
		if v := strings.TrimSpace(tags[n]); v != "" {
			return n, v, true
		}
	}
	return "", "", false
}

func lookupNonEmpty(lookup func(string) (string, bool), name string) string {
	if lookup == nil {
		return ""
	}
	v, _ := lookup(name)
	return v
}

// bySource puts the problems in an order that does not change between runs and that follows the lines of the file.
func bySource(a, b error) int {
	var x, y *settingError
	if !errors.As(a, &x) || !errors.As(b, &y) {
		return 0
	}
	return cmp.Or(-cmp.Compare(x.layer, y.layer), cmp.Compare(x.line, y.line), cmp.Compare(x.source, y.source))
}

// implied applies the rules between settings.
func (s *settings) implied() []error {
	service, command := s.values[keyService], s.values[keyServiceCommand]

	// A config.yaml in a tree below --root must not restart this machine's own server. Only the command line may.
	if s.values[keyRoot].text != "" && s.values[keyRoot].text != "/" {
		o := origin{Layer: layerImplied, Name: "--root"}
		if service.origin.Layer < layerEnv && command.origin.Layer < layerEnv {
			s.values[keyService] = value{text: "none", origin: o}
			s.values[keyServiceCommand] = value{}
			return nil
		}
		if command.origin.Layer < layerEnv {
			command = value{}
		}
		if service.origin.Layer < layerEnv {
			service = value{text: "auto"}
		}
	}

	// A command and a kind exclude each other; the higher layer wins, within one layer nobody can know.
	if command.text != "" && service.text != "auto" {
		switch c := cmp.Compare(command.origin.Layer, service.origin.Layer); {
		case c > 0:
			service = value{text: "auto"}
		case c < 0:
			command = value{}
		default:
			return []error{&settingError{
				source: command.origin.String(), layer: command.origin.Layer, line: command.origin.Line,
				err:   fmt.Errorf("cannot be combined with %s %s", service.origin, service.text),
				hints: []string{"give a service command, or the kind of service, not both"},
			}}
		}
	}
	s.values[keyService], s.values[keyServiceCommand] = service, command
	return nil
}

// fill sets the typed fields from the texts, which are all checked by now.
func (s *settings) fill() {
	text := func(key string) string { return s.values[key].text }
	s.Mongo = text(keyMongo)
	s.Role = text(keyRole)
	s.Group = text(keyGroup)
	s.Address = text(keyAddress)
	s.AMSDir = text(keyAMSDir)
	s.AMSRelease = text(keyAMSRelease)
	s.Provider = text(keyProvider)
	s.Service = text(keyService)
	s.ServiceCommand = text(keyServiceCommand)
	s.RemoteIPValve = text(keyRemoteIPValve)
	s.Timeout, _ = time.ParseDuration(text(keyTimeout))
	s.OnFailure = text(keyOnFailure)
	s.AutoJoin = text(keyAutoJoin) == "true"
	s.BeatInterval, _ = time.ParseDuration(text(keyBeatInterval))
	s.Metrics, s.AgentCheck = text(keyMetrics), text(keyAgentCheck)
	s.Serving = nil
	if v := text(keyServing); v != "" {
		s.Serving = strings.Split(v, ",")
	}
	s.Hooks = nil
	if v := text(keyHooks); v != "" {
		s.Hooks = strings.Split(v, ",")
	}
	s.UnhealthyAfter, _ = time.ParseDuration(text(keyUnhealthyAfter))
	s.DrainDeadline, _ = time.ParseDuration(text(keyDrainDeadline))
	s.RemoteDrain = text(keyRemoteDrain) == "true"
	s.Root = text(keyRoot)
	s.Config = text(keyConfig)
	s.Output = text(keyOutput)
	_ = s.LogLevel.UnmarshalText([]byte(text(keyLogLevel)))
	s.Color = text(keyColor)
}

// tagPrefix begins the names of the instance tags that are settings.
const tagPrefix = "amsagent:"

// misspeltVariables returns warnings.
func misspeltVariables(environ func() []string) []string {
	if environ == nil {
		return nil
	}
	var known, warnings []string
	for _, row := range settingsTable() {
		known = append(known, strings.ToUpper(row.key))
	}
	for _, e := range endpoints() {
		known = append(known, strings.TrimPrefix(e.env, envPrefix))
	}
	for _, kv := range environ() {
		name, _, _ := strings.Cut(kv, "=")
		word, ok := strings.CutPrefix(name, envPrefix)
		if !ok || slices.Contains(known, word) {
			continue
		}
		warnings = append(warnings, fmt.Sprintf("the variable %s is not a setting and has no effect", name))
	}
	slices.Sort(warnings)
	return warnings
}
