// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"github.com/amsagent/amsagent/metadata/aws"
)

// probe is how one cloud's service proves over the network that it is that cloud's. Something answering proves nothing:
// each wants to see what only its own cloud says.
type probe struct {
	provider string
	endpoint string
	asks     string
	run      func(ctx context.Context, client *http.Client, origin string) (proof string, err error)
}

func probes() []probe {
	return []probe{
		{Azure, "http://169.254.169.254", "the versions of Azure's metadata", probeAzure},
		{GCP, "http://169.254.169.254", "the instance id in Google's metadata", probeGCP},
		{Alibaba, "http://100.100.100.200", "the instance id in Alibaba's metadata", probeAlibaba},
	}
}

// detectNetwork asks all clouds at once, for a second at most, and believes one only if no other is proved too.
func detectNetwork(ctx context.Context, d *Detection, opts Options) error {
	if opts.NoNetwork {
		d.undecided(opts, "network", "not asked: the settings forbid it")
		return nil
	}
	type answer struct {
		Evidence
		provider string
		proved   bool
	}
	bounded, cancel := context.WithTimeout(ctx, opts.ProbeTimeout)
	defer cancel()

	list := probes()
	// The order of the evidence is that of the providers, not that of the answers.
	answers := make([]*answer, len(list)+1)
	var wg sync.WaitGroup
	ask := func(i int, provider, asks, origin string, run func(context.Context) (string, error)) {
		a := &answer{provider: provider, Evidence: Evidence{Source: asks}}
		answers[i] = a
		given, _ := opts.Endpoint(provider) // Detect has checked them all.
		switch {
		case opts.IsDisabled(provider):
			a.Verdict = "not asked: disabled by the settings"
			return
		case given != "":
			origin = given
		case opts.Root != "":
			// The network is that of the machine we run on, and the root another's.
			a.Verdict = "not asked: below a root only services whose address is set are asked"
			return
		}
		a.Source += " at " + origin
		wg.Go(func() {
			v, err := run(bounded)
			if err != nil {
				a.Verdict = "no: " + err.Error()
				return
			}
			a.Value, a.Verdict, a.proved = v, "yes, as only this cloud answers", true
		})
	}
	ask(0, AWS, "the identity document in EC2's metadata", aws.Endpoint, func(ctx context.Context) (string, error) { return probeAWS(ctx, opts) })
	client := opts.HTTPClient()
	defer client.CloseIdleConnections()
	for i, p := range list {
		ask(i+1, p.provider, p.asks, p.endpoint, func(ctx context.Context) (string, error) {
			origin := p.endpoint
			if given, _ := opts.Endpoint(p.provider); given != "" {
				origin = given
			}
			return p.run(ctx, client, origin)
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("detecting the cloud: %w", err)
	}

	var proved []int
	for i, a := range answers {
		if a.proved {
			proved = append(proved, i)
		}
	}
	if len(proved) == 1 {
		a := answers[proved[0]]
		a.Decided = true
		d.Provider = a.provider
	}
	for _, a := range answers {
		if !a.Decided {
			d.Evidence = append(d.Evidence, a.Evidence)
		}
	}
	switch len(proved) {
	case 0:
		d.undecided(opts, "all of the above", "nothing says which cloud this is, if any: the machine's own facts are used")
	case 1:
		d.Evidence = append(d.Evidence, answers[proved[0]].Evidence)
	default:
		d.undecided(opts, "all of the above", "several clouds answer, so none is believed: name one by --provider")
	}
	return nil
}

func probeAWS(ctx context.Context, opts Options) (string, error) {
	// A probe is no reading of metadata: its retries are nobody's concern.
	opts.Log = nil
	// Half, so that an address that swallows packets leaves time for the other one (IPv4, IPv6).
	opts.Timeout, opts.AttemptTimeout = opts.ProbeTimeout, opts.ProbeTimeout/2
	p, err := aws.New(opts)
	if err != nil {
		return "", err
	}
	id, err := p.Identity(ctx)
	if err != nil {
		return "", err
	}
	return id.InstanceID + " in " + id.Region, nil
}

func probeAzure(ctx context.Context, client *http.Client, origin string) (string, error) {
	_, body, err := ask(ctx, client, http.MethodGet, origin+"/metadata/versions", "Metadata", "true")
	if err != nil {
		return "", err
	}
	var v struct {
		APIVersions []string `json:"apiVersions"`
	}
	if err := json.Unmarshal(body, &v); err != nil || len(v.APIVersions) == 0 {
		return "", errors.New("the answer is not Azure's list of versions")
	}
	return fmt.Sprintf("%d API versions", len(v.APIVersions)), nil
}

var (
	googleID  = regexp.MustCompile(`^[0-9]{1,20}$`)
	alibabaID = regexp.MustCompile(`^i-[0-9a-z]{10,32}$`)
)

func probeGCP(ctx context.Context, client *http.Client, origin string) (string, error) {
	h, body, err := ask(ctx, client, http.MethodGet, origin+"/computeMetadata/v1/instance/id", "Metadata-Flavor", "Google")
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(body))
	if h.Get("Metadata-Flavor") != "Google" || !googleID.MatchString(id) {
		return "", errors.New("the answer does not carry Google's mark")
	}
	return id, nil
}

func probeAlibaba(ctx context.Context, client *http.Client, origin string) (string, error) {
	_, token, err := ask(ctx, client, http.MethodPut, origin+"/latest/api/token", "X-aliyun-ecs-metadata-token-ttl-seconds", "60")
	if err != nil {
		return "", err
	}
	t := strings.TrimSpace(string(token))
	if t == "" || len(t) > 512 || strings.ContainsAny(t, " \t\r\n<>") {
		return "", errors.New("the answer is no session token")
	}
	_, body, err := ask(ctx, client, http.MethodGet, origin+"/latest/meta-data/instance-id", "X-aliyun-ecs-metadata-token", t)
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(body))
	if !alibabaID.MatchString(id) || ec2Instance.MatchString(id) {
		return "", errors.New("the answer is no Alibaba instance id")
	}
	return id, nil
}

// ask makes one request. Everything but 200 is a no.
func ask(ctx context.Context, client *http.Client, method, url, header, value string) (http.Header, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set(header, value)
	resp, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil, errors.New("no answer in time")
		}
		return nil, nil, errors.New("no connection")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("HTTP %d", resp.StatusCode)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, errors.New("the answer was cut short")
	}
	return resp.Header, body, nil
}
