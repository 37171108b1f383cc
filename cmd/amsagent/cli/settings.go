// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
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
	values map[string]value
	// untagged are the values that tags took the place of.
	untagged map[string]value

	// Mongo is as given, possibly file:PATH, possibly with a password: use globals.mongo, never print it.
	Mongo   string
	Role    string
	Group   string
	Address netip.Addr
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
	// Root is absolute, "" for the real one.
	Root     string
	Config   string
	Output   string
	LogLevel slog.Level
	Color    string
	// Endpoints has the origin of each service of a cloud that is not at its usual address.
	Endpoints map[string]string

	// warnings are things to say that stop nothing.
	warnings []string
}

// origin tells where the value of key comes from.
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

// sources is all that settings are made from, before instance tags.
type sources struct {
	flags     map[string]given
	lookupEnv func(string) (string, bool)
	environ   func() []string
	// file is nil where there is none.
	file *configFile
	// given is what an earlier join was given, dropped the keys of which this one wants to keep nothing.
	given   *bootstrap.Given
	dropped []string
	// only limits the keys looked at; nil means all.
	only func(setting) bool
}

// resolveSettings applies flag > environment > given to join > file > default, and checks all layers, also hidden values. It
// returns all problems, joined.
func resolveSettings(src sources) (*settings, error) {
	s := &settings{values: map[string]value{}, untagged: map[string]value{}}
	var errs []error
	add := func(row setting, text string, o origin, source string) {
		canon, err := row.canonical(text)
		if err != nil {
			errs = append(errs, &settingError{source: source, layer: o.Layer, line: o.Line, err: err})
			return
		}
		if old, ok := s.values[row.key]; !ok || o.Layer > old.origin.Layer {
			s.values[row.key] = value{text: canon, origin: o}
		}
	}
	for _, row := range settingsTable() {
		if src.only != nil && !src.only(row) {
			continue
		}
		s.values[row.key] = value{text: row.def}
		if g, ok := src.flags[row.key]; ok {
			add(row, g.text, origin{Layer: layerFlag, Name: g.name}, g.name)
		}
		if v := lookupNonEmpty(src.lookupEnv, row.env()); v != "" {
			add(row, v, origin{Layer: layerEnv, Name: row.env()}, row.env())
		}
		// https://no-color.org: any value but the empty one means no color.
		if row.key == keyColor && lookupNonEmpty(src.lookupEnv, "NO_COLOR") != "" {
			add(row, "never", origin{Layer: layerEnv, Name: "NO_COLOR"}, "NO_COLOR")
		}
		if src.file == nil {
			continue
		}
		if fv, ok := src.file.values[row.key]; ok {
			o := origin{Layer: layerFile, Name: src.file.path, Line: fv.line}
			add(row, fv.text, o, o.String())
		}
	}
	if src.file != nil {
		errs = append(errs, src.file.errs...)
	}
	if src.only == nil {
		s.applyGiven(src)
		errs = append(errs, s.implied()...)
		errs = append(errs, removedVariables(src.lookupEnv)...)
		var bad []error
		s.Endpoints, bad = readEndpoints(src.lookupEnv)
		errs = append(errs, bad...)
		s.warnings = append(s.warnings, misspeltVariables(src.environ)...)
	}
	if len(errs) > 0 {
		slices.SortStableFunc(errs, bySource)
		return nil, errors.Join(errs...)
	}
	s.fill()
	return s, nil
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
	s.Address, _ = netip.ParseAddr(text(keyAddress))
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
	s.Root = text(keyRoot)
	s.Config = text(keyConfig)
	s.Output = text(keyOutput)
	_ = s.LogLevel.UnmarshalText([]byte(text(keyLogLevel)))
	s.Color = text(keyColor)
}

// tagPrefix begins the names of the instance tags that are settings.
const tagPrefix = "amsagent:"

// applyTags sets values of instance tags where no higher layer has one. all: every tag could be read. A malformed tag is an
// error and leaves its setting unchanged; the other tags count.
func (s *settings) applyTags(all bool, tagValue func(name string) (foundName, text string, ok bool)) error {
	var errs []error
	for _, row := range settingsTable() {
		if row.tag == "" {
			continue
		}
		name, text, ok := tagValue(tagPrefix + row.tag)
		o := origin{Layer: layerTag, Name: name}
		canon := ""
		if ok = ok && text != ""; ok {
			var err error
			canon, err = row.canonical(text)
			if err == nil && row.key == keyMongo && strings.HasPrefix(canon, "file:") {
				// Who may write tags need not be who may choose which files of this machine root reads.
				err = valueError{text: "a tag cannot name a file"}
			}
			if err != nil {
				errs = append(errs, &settingError{source: o.String(), layer: o.Layer, err: err})
				continue
			}
		}
		if all && s.origin(row.key).Layer == layerTag {
			s.values[row.key] = s.untagged[row.key] // it may have been taken away
		}
		if !ok {
			continue
		}
		if s.origin(row.key).Layer != layerTag {
			s.untagged[row.key] = s.values[row.key]
		}
		s.setAgain(row.key, value{text: canon, origin: o})
	}
	s.fill()
	return errors.Join(errs...)
}

// applyGroup takes the scaling group that the cloud names, where nothing else says one.
func (s *settings) applyGroup(group, how string) {
	if group == "" {
		return
	}
	s.setAgain(keyGroup, value{text: group, origin: origin{Layer: layerInstance, Name: how}})
	s.fill()
}

// setAgain sets a value that may change, unless a higher layer has one.
func (s *settings) setAgain(key string, v value) {
	if old := s.values[key]; old.origin.Layer <= v.origin.Layer {
		s.values[key] = v
	}
}

// setLower sets a value unless a higher layer already has.
func (s *settings) setLower(key string, v value) {
	if old := s.values[key]; old.origin.Layer < v.origin.Layer {
		s.values[key] = v
	}
}

// misspeltVariables finds unknown variables with our prefix, for a warning.
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
