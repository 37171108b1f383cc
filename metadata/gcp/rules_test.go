// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/gcp"
)

// faultVariable makes the provider of TestConformance one with a fault, in the child that TestRulesFindFaults starts.
const faultVariable = "AMSAGENT_TEST_FAULT"

// faulty is the provider with one fault that the provider of any cloud could have. Without a fault it is well.
type faulty struct {
	cloud.Provider
	fault string
}

func openFaulty(o cloud.Options) (cloud.Provider, error) {
	p := &faulty{fault: os.Getenv(faultVariable)}
	if p.fault == "takes any endpoint" && strings.Contains(o.Endpoints["gcp"], "@") {
		o.Endpoints = nil
	}
	o.Transport = &faultyWire{fault: p.fault, next: o.Transport}
	opened, err := gcp.New(o)
	if err != nil {
		return nil, err
	}
	p.Provider = opened
	if p.fault == "asks when it is opened" {
		_, _ = p.Instance(context.Background())
	}
	return p, nil
}

func (p *faulty) Instance(ctx context.Context) (cloud.Instance, error) {
	if p.fault == "ignores the context" {
		ctx = context.WithoutCancel(ctx)
	}
	if p.fault == "asks twice" {
		_, _ = p.Provider.Instance(ctx)
	}
	inst, err := p.Provider.Instance(ctx)
	switch p.fault {
	case "believes anything":
		if errors.Is(err, cloud.ErrBadAnswer) {
			return inst, nil
		}
	case "errors without a name":
		if err != nil {
			return inst, errors.New("it did not work")
		}
	case "no hint":
		if e, ok := errors.AsType[*cloud.Error](err); ok {
			e.Hint = ""
		}
	case "says not why":
		inst.TagsHint = ""
	case "absent is the same as missing":
		inst.Missing = nil
	}
	return inst, err
}

// faultyWire has the faults of requests.
type faultyWire struct {
	fault   string
	next    http.RoundTripper
	refused *http.Response
}

// RoundTrip implements http.RoundTripper.
func (w *faultyWire) RoundTrip(req *http.Request) (*http.Response, error) {
	if w.fault == "says who it is" {
		req.Header.Set("Authorization", "Bearer me")
	}
	if w.fault == "gives up at once" && w.refused != nil {
		again := *w.refused
		again.Body = http.NoBody
		return &again, nil
	}
	resp, err := w.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusNotFound {
		w.refused = resp
	}
	if w.fault == "asks who refuses again" && resp.StatusCode == http.StatusForbidden {
		resp.StatusCode = http.StatusServiceUnavailable
	}
	return resp, nil
}

// A rule of metadatatest that cannot fail is useless. Each fault must be found by the rules that are named for it.
func TestRulesFindFaults(t *testing.T) {
	for fault, rules := range map[string]string{
		"takes any endpoint":            "bad_endpoint_is_refused",
		"asks when it is opened":        "reads_again_on_each_call",
		"ignores the context":           "cancelled cancelled_in_the_middle",
		"believes anything":             "wrong_types",
		"asks twice":                    "machine/spot reads_again_on_each_call",
		"errors without a name":         "http_404_of_the_required_item",
		"says not why":                  "machine/parts_of_unknown_form",
		"absent is the same as missing": "optional_item_broken_is_missing_not_absent",
		"asks who refuses again":        "http_403_is_final",
		"no hint":                       "http_403_is_final http_404_of_the_required_item",
		"gives up at once":              "http_404_of_the_required_item",
		"says who it is":                "machine/spot",
	} {
		t.Run(strings.ReplaceAll(fault, " ", "_"), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			tops := regexp.MustCompile(`/\S*`).ReplaceAllString(rules, "")
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.v", "-test.run=^TestConformance$/^("+strings.ReplaceAll(tops, " ", "|")+")$")
			cmd.Env = append(os.Environ(), faultVariable+"="+fault)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Errorf("no rule finds it:\n%s", out)
			}
			for r := range strings.FieldsSeq(rules) {
				if !regexp.MustCompile(`(?m)^ *--- FAIL: TestConformance/` + regexp.QuoteMeta(r) + ` `).Match(out) {
					t.Errorf("rule %s does not find it:\n%s", r, out)
				}
			}
		})
	}
}
