// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/replay"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

func service() metadatatest.Service {
	return metadatatest.Service{
		Origin:   "http://169.254.169.254",
		Protocol: replay.Protocol{Token: [2]string{"X-Aws-Ec2-Metadata-Token", "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"}},
		Required: "/latest/dynamic/instance-identity/document",
		Optional: "/latest/meta-data/public-ipv4", Field: "public_address",
		WrongTypes: []string{
			`{"accountId":111122223333,"instanceId":"i-0abc1234567890def","region":"eu-west-1"}`,
			`{"accountId":"111122223333","instanceId":["i-0abc1234567890def"],"region":"eu-west-1"}`,
			`{"accountId":"111122223333","instanceId":"i-0abc1234567890def","region":null}`,
			`{"accountId":"111122223333","instanceId":"i-0abc1234567890def","region":"eu-west-1","privateIp":10}`,
			`{"accountId":"111122223333","instanceId":"i-0abc1234567890def","region":"eu-west-1","privateIp":"ten"}`,
			`{"accountId":"111122223333","instanceId":"iid-nocloud","region":"eu-west-1"}`,
			`[]`, `null`, `{}`, `"i-0abc1234567890def"`,
		},
	}
}

// document is an identity document as the EC2 user guide prints one, with invented values.
func document(privateIP string) string {
	return `{
  "accountId" : "111122223333",
  "architecture" : "x86_64",
  "availabilityZone" : "eu-west-1a",
  "billingProducts" : null,
  "devpayProductCodes" : null,
  "marketplaceProductCodes" : null,
  "imageId" : "ami-0123456789abcdef0",
  "instanceId" : "i-0abc1234567890def",
  "instanceType" : "c7i.2xlarge",
  "kernelId" : null,
  "pendingTime" : "2026-11-20T08:00:00Z",
  "privateIp" : ` + privateIP + `,
  "ramdiskId" : null,
  "region" : "eu-west-1",
  "version" : "2017-09-30"
}`
}

const (
	mac  = "0e:49:61:0f:c3:11"
	mac2 = "0e:49:61:0f:c3:77"
	meta = "/latest/meta-data/"
)

func bodies(more ...map[string]string) map[string]string {
	out := map[string]string{
		"/latest/dynamic/instance-identity/document":     document(`"10.0.1.23"`),
		meta + "instance-life-cycle":                     "spot",
		meta + "local-hostname":                          "ip-10-0-1-23.eu-west-1.compute.internal",
		meta + "public-ipv4":                             "203.0.113.7",
		meta + "mac":                                     mac,
		meta + "network/interfaces/macs/":                mac + "/\n",
		meta + "tags/instance":                           "Name\namsagent:role\naws:autoscaling:groupName",
		meta + "tags/instance/Name":                      "edge one",
		meta + "tags/instance/amsagent:role":             "edge",
		meta + "tags/instance/aws:autoscaling:groupName": "edge-asg",
	}
	for _, m := range more {
		for k, v := range m {
			if v == gone {
				delete(out, k)
				continue
			}
			out[k] = v
		}
	}
	return out
}

const gone = "\x00gone"

func instance(change ...func(*cloud.Instance)) cloud.Instance {
	inst := cloud.Instance{
		Provider: "aws", ID: "i-0abc1234567890def", IDSource: "instance id of the identity document", AccountID: "111122223333",
		Region: "eu-west-1", Zone: "eu-west-1a", Type: "c7i.2xlarge", LifeCycle: "spot",
		Hostname: "ip-10-0-1-23.eu-west-1.compute.internal",
		Address:  netip.MustParseAddr("10.0.1.23"), AddressSource: "private address of the identity document",
		PublicAddress: netip.MustParseAddr("203.0.113.7"),
		Tags:          cloud.Tags{"Name": "edge one", "amsagent:role": "edge", "aws:autoscaling:groupName": "edge-asg"},
		TagsKnown:     true, Group: "edge-asg",
	}
	for _, c := range change {
		c(&inst)
	}
	return inst
}

const hintTags = "EC2 shows no tags in the metadata: set InstanceMetadataTags=enabled in the metadata options of the launch template, " +
	"or give MongoDB's address, role and group by flag, environment or configuration file (this is also what an instance without any tag looks like)"

func machines() []metadatatest.Machine {
	v6path := meta + "network/interfaces/macs/" + mac + "/ipv6s"
	return []metadatatest.Machine{
		{Name: "ipv4", Bodies: bodies(), Want: instance()},
		{
			Name: "dual_stack",
			Bodies: bodies(map[string]string{
				v6path: "2001:db8:1f18::a1\n2001:db8:1f18::a2\n",
			}),
			Want: instance(func(i *cloud.Instance) { i.IPv6 = netip.MustParseAddr("2001:db8:1f18::a1") }),
		},
		{
			// privateIp in the document is null in an IPv6-only subnet, and the host name is based on the resource.
			Name: "ipv6_only",
			Bodies: bodies(map[string]string{
				"/latest/dynamic/instance-identity/document": document("null"),
				meta + "local-hostname":                      "i-0abc1234567890def.eu-west-1.compute.internal",
				meta + "public-ipv4":                         gone,
				v6path:                                       "2001:db8:1f18::a1",
			}),
			Want: instance(func(i *cloud.Instance) {
				i.Hostname = "i-0abc1234567890def.eu-west-1.compute.internal"
				i.Address, i.IPv6, i.PublicAddress = netip.MustParseAddr("2001:db8:1f18::a1"), netip.MustParseAddr("2001:db8:1f18::a1"), netip.Addr{}
				i.AddressSource = "first IPv6 address of the first interface, since the instance has no IPv4 address"
			}),
		},
		{
			// Such a machine does have a link-local IPv4 address, for the metadata service alone.
			Name: "ipv6_only_with_link_local_ipv4",
			Bodies: bodies(map[string]string{
				"/latest/dynamic/instance-identity/document": document(`"169.254.1.74"`),
				meta + "public-ipv4":                         gone,
				v6path:                                       "fe80::1\n2001:db8:1f18::a1",
			}),
			Want: instance(func(i *cloud.Instance) {
				i.Address, i.IPv6, i.PublicAddress = netip.MustParseAddr("2001:db8:1f18::a1"), netip.MustParseAddr("2001:db8:1f18::a1"), netip.Addr{}
				i.AddressSource = "first IPv6 address of the first interface, since the instance has no IPv4 address"
			}),
		},
		{
			// The list of interfaces has no order; the first one of the cloud is that of meta-data/mac.
			Name: "several_nics_in_any_order",
			Bodies: bodies(map[string]string{
				meta + "network/interfaces/macs/":                         mac2 + "/\n" + mac + "/\n",
				meta + "network/interfaces/macs/" + mac2 + "/ipv6s":       "2001:db8:2::1",
				meta + "network/interfaces/macs/" + mac2 + "/local-ipv4s": "10.9.9.9",
				v6path: "2001:db8:1::1",
			}),
			Want: instance(func(i *cloud.Instance) { i.IPv6 = netip.MustParseAddr("2001:db8:1::1") }),
		},
		{
			Name:   "private_subnet",
			Bodies: bodies(map[string]string{meta + "public-ipv4": gone}),
			Want:   instance(func(i *cloud.Instance) { i.PublicAddress = netip.Addr{} }),
		},
		{
			Name: "tags_off",
			Bodies: bodies(map[string]string{
				meta + "tags/instance": gone, meta + "tags/instance/amsagent:role": gone,
				meta + "tags/instance/Name": gone, meta + "tags/instance/aws:autoscaling:groupName": gone,
			}),
			Want: instance(func(i *cloud.Instance) { i.Tags, i.TagsKnown, i.TagsHint, i.Group = nil, false, hintTags, "" }),
		},
		{
			Name: "tags_on_and_in_no_group",
			Bodies: bodies(map[string]string{
				meta + "tags/instance": "Name\namsagent:role", meta + "tags/instance/aws:autoscaling:groupName": gone,
			}),
			Want: instance(func(i *cloud.Instance) {
				i.Group = ""
				delete(i.Tags, "aws:autoscaling:groupName")
			}),
		},
		{
			Name: "tags_on_and_no_role",
			Bodies: bodies(map[string]string{
				meta + "tags/instance": "Name\naws:autoscaling:groupName", meta + "tags/instance/amsagent:role": gone,
			}),
			Want: instance(func(i *cloud.Instance) { delete(i.Tags, "amsagent:role") }),
		},
		{
			Name:   "group_tag_not_in_the_list",
			Bodies: bodies(map[string]string{meta + "tags/instance": "Name\namsagent:role\n"}),
			Want:   instance(),
		},
		{
			// An instance tag was removed between the two requests.
			Name:   "listed_tag_is_gone",
			Bodies: bodies(map[string]string{meta + "tags/instance/Name": gone}),
			Want:   instance(func(i *cloud.Instance) { delete(i.Tags, "Name") }),
		},
		{
			Name: "odd_but_legal_tags",
			Bodies: bodies(map[string]string{
				meta + "tags/instance":                   "Name\r\namsagent:role\r\naws:autoscaling:groupName\r\na+b-c=d.e,f_g:h@i\r\nempty\r\n_index",
				meta + "tags/instance/empty":             "",
				meta + "tags/instance/a+b-c=d.e,f_g:h@i": "Größe: 1/2 + <x> & \"y\"",
			}),
			Want: instance(func(i *cloud.Instance) {
				i.Tags["empty"], i.Tags["a+b-c=d.e,f_g:h@i"] = "", "Größe: 1/2 + <x> & \"y\""
			}),
		},
		{
			Name:   "malformed_tag_list",
			Bodies: bodies(map[string]string{meta + "tags/instance": "<html><body>no</body></html>"}),
			Want: instance(func(i *cloud.Instance) {
				i.Tags, i.TagsKnown, i.Group, i.Missing = nil, false, "", []string{"tags"}
				i.TagsHint = `the tags could not be read: reading the list of tags from the aws metadata: unusable answer from the metadata service: ` +
					`the list of tags holds "<html><body>no</body></html>", which is no tag key (tried 3 times)`
			}),
		},
		{
			Name:   "several_domains",
			Bodies: bodies(map[string]string{meta + "local-hostname": "ip-10-0-1-23.corp.example.com corp2.example.com\n"}),
			Want:   instance(func(i *cloud.Instance) { i.Hostname = "ip-10-0-1-23.corp.example.com" }),
		},
		{
			Name: "unknown_fields_and_words",
			Bodies: bodies(map[string]string{
				"/latest/dynamic/instance-identity/document": strings.Replace(document(`"10.0.1.23"`), "{", `{"newField":{"deep":[1,2]},`, 1),
				meta + "instance-life-cycle":                 "capacity-block",
			}),
			Want: instance(func(i *cloud.Instance) { i.LifeCycle = "capacity-block" }),
		},
		{
			Name: "bare_minimum",
			Bodies: map[string]string{
				"/latest/dynamic/instance-identity/document": `{"accountId":"111122223333","instanceId":"i-0abc1234567890def","region":"eu-west-1"}`,
			},
			Want: cloud.Instance{
				Provider: "aws", ID: "i-0abc1234567890def", IDSource: "instance id of the identity document",
				AccountID: "111122223333", Region: "eu-west-1", TagsHint: hintTags,
			},
		},
	}
}

func open(o cloud.Options) (cloud.Provider, error) {
	p, err := aws.New(o)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func TestConformance(t *testing.T) {
	metadatatest.Run(t, metadatatest.Suite{
		Name: aws.Name, Open: open, Machines: machines(), Service: service(),
	})
}

// TestToken: the SDK keeps the session token, and its failures are those of the client of the other clouds. TestHopLimitHint
// covers a service that never answers.
func TestToken(t *testing.T) {
	const token, item = "/latest/api/token", "/latest/dynamic/instance-identity/document"
	status := replay.Status
	for name, tt := range map[string]struct {
		path   string
		fault  http.HandlerFunc
		n      int
		kind   error
		hint   string // in it
		tokens int
	}{
		"refused for good": {item, status(401), -1, cloud.ErrForbidden, "session tokens that it has just given out", 2},
		"lost":             {token, replay.Closed, 1, nil, "", 2},
		"late":             {token, replay.Slow, 1, nil, "", 2},
		"503 once":         {token, status(503), 1, nil, "", 2},
		"a page":           {token, replay.HTML, -1, cloud.ErrBadAnswer, "", 3},
		"empty":            {token, replay.Body(""), -1, cloud.ErrBadAnswer, "", 3},
		"400":              {token, status(400), -1, cloud.ErrBadAnswer, "", 1},
		"403":              {token, status(403), -1, cloud.ErrForbidden, "switched off", 1},
		"404":              {token, status(404), -1, cloud.ErrNotThisCloud, "no session tokens", 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := replay.New(t, service().Protocol, bodies())
				f.Break(tt.path, tt.n, tt.fault)
				p, err := aws.New(cloud.Options{Transport: fakes.Transport{Handler: f}})
				must.OK(t, err)
				_, err = p.Instance(t.Context())
				if !errors.Is(err, tt.kind) || !strings.Contains(cloud.HintOf(err), tt.hint) || f.Count(token) != tt.tokens {
					t.Errorf("%v, hint %q, %d tokens", err, cloud.HintOf(err), f.Count(token))
				}
				if n := f.Count(item); tt.kind != nil && tt.path == token && n > 0 {
					t.Errorf("%d requests without a token", n)
				}
				if tt.kind != nil {
					return
				}
				f.ExpireTokens()
				if _, err := p.Instance(t.Context()); err != nil || f.Count(token) != tt.tokens+1 {
					t.Errorf("expired: %v, %d tokens", err, f.Count(token))
				}
			})
		})
	}
}

// The hop limit drops the response to a token request in a container: the connection is made and no answer follows. Without a
// connection the hop limit is not the reason.
func TestHopLimitHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := replay.New(t, service().Protocol, bodies())
		f.Break("/latest/api/token", -1, replay.Slow)
		for _, tt := range []struct {
			service    http.RoundTripper
			hint, text string
		}{
			{fakes.Transport{Handler: f}, "--http-put-response-hop-limit 2", "connected, and no answer in time"},
			{metadatatest.RoundTrip(metadatatest.Silent), "no metadata service", "no connection in time"},
		} {
			p, err := aws.New(cloud.Options{Transport: tt.service})
			must.OK(t, err)
			_, err = p.Instance(t.Context())
			if hint := cloud.HintOf(err); !strings.Contains(hint, tt.hint) || err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("hint = %q, error = %v; want %q and %q", hint, err, tt.hint, tt.text)
			}
		}
	})
}

// An instance without a route to the IPv4 address reaches the service by IPv6, and keeps the address that worked.
func TestIPv6EndpointWhereIPv4IsUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := replay.New(t, service().Protocol, bodies())
		var asked []string
		p, err := aws.New(cloud.Options{Transport: metadatatest.RoundTrip(func(r *http.Request) (*http.Response, error) {
			asked = append(asked, r.URL.Host)
			if r.URL.Host == "169.254.169.254" {
				return nil, &net.OpError{Op: "dial", Err: syscall.ENETUNREACH}
			}
			return fakes.Transport{Handler: f}.RoundTrip(r)
		})})
		must.OK(t, err)
		_, err = p.Instance(t.Context())
		must.OK(t, err)
		want := []string{"169.254.169.254", "[fd00:ec2::254]"}
		must.NoDiff(t, "asked", slices.Compact(asked), want)
	})
}

// The SDK asks nothing after its caller's time: that is no answer of the service.
func TestNothingIsAskedInNoTime(t *testing.T) {
	t.Parallel()
	p, err := open(cloud.Options{Transport: fakes.Transport{Handler: http.NotFoundHandler()}})
	must.OK(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	if _, err := p.Instance(ctx); !errors.Is(err, cloud.ErrNotReady) || errors.Is(err, cloud.ErrBadAnswer) {
		t.Errorf("got %v", err)
	}
}

func TestDisabled(t *testing.T) {
	_, err := aws.New(cloud.Options{Disabled: []string{"aws"}})
	if !errors.Is(err, cloud.ErrForbidden) || cloud.HintOf(err) == "" {
		t.Errorf("error = %v, hint = %q", err, cloud.HintOf(err))
	}
}

// The SDK looks at these if the caller does not set the options.
func TestEnvironmentIsNotRead(t *testing.T) {
	f := replay.New(t, service().Protocol, bodies())
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://192.0.2.1")
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6")
	p, err := aws.New(cloud.Options{Transport: metadatatest.RoundTrip(func(r *http.Request) (*http.Response, error) {
		must.Equal(t, "host of "+r.URL.String(), r.URL.Host, "169.254.169.254")
		return fakes.Transport{Handler: f}.RoundTrip(r)
	})})
	must.OK(t, err)
	_, err = p.Instance(t.Context())
	must.OK(t, err)
}

// An existing tag that cannot be read may be the role: it must not look absent.
func TestUnreadableTagMeansUnknownTags(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := replay.New(t, service().Protocol, bodies())
		f.Break(meta+"tags/instance/amsagent:role", -1, replay.Status(http.StatusInternalServerError))
		p, err := aws.New(cloud.Options{Transport: fakes.Transport{Handler: f}})
		must.OK(t, err)
		inst, err := p.Instance(t.Context())
		must.OK(t, err)
		if inst.TagsKnown || inst.TagsHint == "" || !slices.Contains(inst.Missing, "tags") {
			t.Errorf("TagsKnown = %v, TagsHint = %q, Missing = %v", inst.TagsKnown, inst.TagsHint, inst.Missing)
		}
		must.Equal(t, "group; what could be read is lost", inst.Group, "edge-asg")
	})
}
