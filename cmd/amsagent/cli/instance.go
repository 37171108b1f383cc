// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// machine is this machine by its own facts and by the cloud's metadata.
type machine struct {
	Detection metadata.Detection
	Instance  metadata.Instance
	// Unrecognised reports that nothing on this machine names a cloud, nor does the operator.
	Unrecognised bool
	// Notes are for the operator, about this machine's cloud and tags. They stop nothing.
	Notes []string
}

// whoami asks the cloud for this instance, and uses the answer. With a malformed tag it returns the instance and an error.
func (g *globals) whoami(ctx context.Context) (metadata.Instance, error) {
	m, err := g.ask(ctx, g.question())
	if err != nil {
		return metadata.Instance{}, err
	}
	return m.Instance, g.use(m)
}

// use keeps the answer of the cloud, logs once which tags are not read, and makes tags and group settings.
func (g *globals) use(m machine) error {
	g.mu.Lock()
	g.seen = m
	g.mu.Unlock()
	i := m.Instance
	if text := unreadTags(i.Tags); text != "" && g.out.Once(text) {
		g.out.Log().Warn("instance tags are not read", "detail", text)
	}
	group := i.Group
	if s := joinedState(g.settings.Root); !i.TagsKnown && s != nil && s.Group != "" {
		group = "" // an incomplete answer may lack the tag that names another group
	}
	var err error
	g.settings, err = g.settings.WithTags(i.TagsKnown, group, i.Tags)
	return err
}

// question has the settings for reading the instance.
type question struct {
	opts metadata.Options
	// provider and its origin are those of the setting.
	provider, origin string
	open             func(provider string, opts metadata.Options) (metadata.Provider, error)
}

func (g *globals) question() question {
	return question{
		opts: metadataOptions(g), provider: g.settings.Provider, origin: g.settings.Origin(settings.KeyProvider).String(), open: metadata.Open,
	}
}

// ask finds the cloud and reads the instance. It does not read the settings: while it waits for the metadata, others may
// change them.
func (g *globals) ask(ctx context.Context, q question) (machine, error) {
	var m machine
	var err error
	if q.provider != "auto" {
		m.Detection = metadata.Detection{Provider: q.provider, Because: q.origin}
	} else if m.Detection, err = metadata.Detect(q.opts); err != nil {
		return machine{}, err
	}
	m.Unrecognised = q.provider == "auto" && m.Detection.Provider == metadata.Generic && m.Detection.Platform == ""
	g.out.Log().Debug("provider", "name", m.Detection.Provider, "because", m.Detection.Because)

	if p := m.Detection.Provider; m.Detection.Remembered && q.opts.Root != "" && q.opts.Endpoints[p] == "" {
		// The network is that of the machine we run on.
		return machine{}, unknownForNow(p, errors.New("not asked: below a root only services whose address is set are asked"))
	}
	p, err := q.open(m.Detection.Provider, q.opts)
	if err != nil {
		return machine{}, err
	}
	if m.Instance, err = p.Instance(ctx); err != nil {
		if m.Detection.Remembered {
			err = unknownForNow(m.Detection.Provider, err)
		}
		return machine{}, err
	}
	if err := m.Instance.Bound(); err != nil {
		return machine{}, err
	}
	// A tag may hold a connection string: its password is never printed.
	for _, v := range m.Instance.Tags {
		if t, perr := cluster.ParseTarget(v); perr == nil {
			g.out.AddSecrets(t.Secrets()...)
		}
	}
	if m.Unrecognised {
		m.Notes = append(m.Notes, noCloud)
	}
	if text := unreadTags(m.Instance.Tags); text != "" {
		m.Notes = append(m.Notes, text)
	}
	return m, nil
}

// unknownForNow is the error if the cloud in which this machine joined does not answer, and nothing names another one.
func unknownForNow(provider string, err error) error {
	hint := "if this machine is no longer in " + provider + ", name its cloud: --provider, or provider: in config.yaml"
	if h := cloud.HintOf(err); h != "" {
		hint = h + "; " + hint
	}
	return &metadata.Error{Provider: provider, Item: "identity of this machine", Kind: cloud.ErrNotReady, Hint: hint, Cause: err}
}

func metadataOptions(g *globals) metadata.Options {
	opts := metadata.Options{
		Root:      g.settings.Root,
		Endpoints: g.settings.Endpoints,
		Log:       g.out.Log(),
		APIProxy:  proxyOf(g.env),
		Known:     bootstrap.KnownProvider(g.settings.Root),
	}
	// A variable of the AWS SDK, beside that of the address, which is one of the endpoints.
	if off, err := strconv.ParseBool(g.env.getenv("AWS_EC2_METADATA_DISABLED")); err == nil && off {
		opts.Disabled = append(opts.Disabled, metadata.AWS)
	}
	return opts
}

// tagsNote is the reason why no tags are known, or "".
func tagsNote(inst metadata.Instance) string {
	if inst.TagsKnown || inst.TagsHint == "" {
		return ""
	}
	return "no instance tags: " + inst.TagsHint
}

// noCloud is the note of a machine on which nothing names a cloud: there a scale-in without a notice would cut every session.
const noCloud = "no cloud recognised: no scale-in will be announced here; if there is one, --provider aws|azure|alibaba|gcp"

// unreadTags names the tags that begin with the agent's name and are no settings, or is "".
func unreadTags(tags map[string]string) string {
	var read, unread []string
	for _, row := range settings.Table() {
		if row.Tag != "" {
			read = append(read, settings.TagPrefix+row.Tag)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(tags)) {
		if strings.HasPrefix(strings.ToLower(name), "amsagent") && !slices.Contains(read, strings.Replace(name, "amsagent-", settings.TagPrefix, 1)) {
			unread = append(unread, name)
		}
	}
	if unread == nil {
		return ""
	}
	return "tags that are not read: " + strings.Join(unread, ", ") + "; those that are: " + strings.Join(read, ", ") + ", or with a hyphen for the colon"
}

// roleNote is the note of a join without a role, with the reason why no tag names one; "" with a role.
func roleNote(role string, inst metadata.Instance) string {
	if role != "" {
		return ""
	}
	text := "no role: balancers by role send nothing here; --role"
	if why := tagsNote(inst); why != "" {
		text += "; " + why
	}
	return text
}

// lastSeen is the machine as the cloud last described it; zero before that.
func (g *globals) lastSeen() machine {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seen
}

// proxyOf returns the environment's proxy for a cloud's API. The metadata service needs none.
func proxyOf(env Env) func(*http.Request) (*url.URL, error) {
	get := env.getenv
	https, none := cmp.Or(get("HTTPS_PROXY"), get("https_proxy")), cmp.Or(get("NO_PROXY"), get("no_proxy"))
	if https == "" || none == "*" {
		return nil
	}
	return http.ProxyFromEnvironment
}
