// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package templates

import (
	"bufio"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// motoVersion is the one that tools/scripts/real.sh fetches.
const motoVersion = "5.2.5"

// awsTool returns a command of a program that `tools/scripts/real.sh aws` fetched. It skips the test if the program is missing;
// with REQUIRE_REAL=1 the test fails.
func awsTool(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cache, err := os.UserCacheDir()
	must.OK(t, err)
	dir := filepath.Join(cache, "amsagent", "real", "aws-"+motoVersion)
	program := filepath.Join(dir, "bin", name)
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("REQUIRE_REAL") == "1" {
			t.Fatal(err)
		}
		t.Skipf("there is no %s (`tools/scripts/real.sh aws` fetches it)", name)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "python3", append([]string{"-s", program}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+dir, "PYTHONDONTWRITEBYTECODE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// TestCfnLint: cfn-lint, which knows the schema of every type of resource, finds nothing.
func TestCfnLint(t *testing.T) {
	t.Parallel()
	if out, err := awsTool(t, "cfn-lint", awsCloudFormation).Output(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// moto is a third-party fake AWS.
type moto struct {
	t      *testing.T
	origin string
}

const motoRegion = "eu-west-1"

func startMoto(t *testing.T) *moto {
	t.Helper()
	cmd := awsTool(t, "moto_server", "-H", "127.0.0.1", "-p", "0")
	out, err := cmd.StderrPipe()
	must.OK(t, err)
	must.OK(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	running := regexp.MustCompile(`Running on (http://127\.0\.0\.1:\d+)`)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if m := running.FindStringSubmatch(lines.Text()); m != nil {
			go func() { _, _ = io.Copy(io.Discard, out) }() // a line for each request
			return &moto{t: t, origin: m[1]}
		}
	}
	t.Fatal("moto did not start")
	return nil
}

// ask calls the API of one service and reads the XML of its answer into a value.
func (m *moto) ask(service, action, version string, params url.Values, into any) {
	m.t.Helper()
	form := url.Values{"Action": {action}, "Version": {version}}
	for k, v := range params {
		form[k] = v
	}
	req, err := http.NewRequestWithContext(m.t.Context(), http.MethodPost, m.origin, strings.NewReader(form.Encode()))
	must.OK(m.t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	// moto reads only the scope of the signature, which names the service.
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIA/20260101/"+motoRegion+"/"+service+"/aws4_request, SignedHeaders=host, Signature=0")
	resp, err := http.DefaultClient.Do(req)
	must.OK(m.t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		m.t.Fatalf("%s: %s %v\n%s", action, resp.Status, err, body)
	}
	if into == nil {
		return
	}
	if err := xml.Unmarshal(body, into); err != nil {
		m.t.Fatalf("%s: %v\n%s", action, err, body)
	}
}

func (m *moto) autoscaling(action string, params url.Values, into any) {
	m.t.Helper()
	m.ask("autoscaling", action, "2011-01-01", params, into)
}

// image is one that a machine of moto's can have.
func (m *moto) image() string {
	m.t.Helper()
	var images struct {
		ID string `xml:"imagesSet>item>imageId"`
	}
	m.ask("ec2", "DescribeImages", "2016-11-15", nil, &images)
	return images.ID
}

// motoTemplate is our template without what moto does not know: the function Cidr (its
// values are put there), and listeners of network load balancers.
func motoTemplate(t *testing.T) string {
	t.Helper()
	text := contents(t, awsCloudFormation)
	for _, cut := range []struct{ pattern, with string }{
		{`!Cidr \[!Ref VpcCidr, 2, 7\]`, "[10.42.0.0/25, 10.42.0.128/25]"},
		{`(?m)^  RtmpListener:\n(?:    .*\n)+`, ""},
	} {
		re := regexp.MustCompile(cut.pattern)
		if !re.MatchString(text) {
			t.Fatalf("the template has no %s any more", cut.pattern)
		}
		text = re.ReplaceAllString(text, cut.with)
	}
	return text
}

// TestStackInMoto creates a stack of the template in moto and reads back the groups with their machines. moto ignores the hooks
// in the declaration of a group, so the test adds them as the template has them, and the agent finds them there.
func TestStackInMoto(t *testing.T) {
	t.Parallel()
	m := startMoto(t)
	image := m.image()
	m.ask("cloudformation", "CreateStack", "2010-05-15", url.Values{
		"StackName": {"live"}, "TemplateBody": {motoTemplate(t)}, "Capabilities.member.1": {"CAPABILITY_IAM"},
		"Parameters.member.1.ParameterKey": {"NodeImage"}, "Parameters.member.1.ParameterValue": {image},
		"Parameters.member.2.ParameterKey": {"MongoImage"}, "Parameters.member.2.ParameterValue": {image},
	}, nil)

	var groups struct {
		All []struct {
			Name      string   `xml:"AutoScalingGroupName"`
			Min       int      `xml:"MinSize"`
			Max       int      `xml:"MaxSize"`
			Health    string   `xml:"HealthCheckType"`
			Targets   []string `xml:"TargetGroupARNs>member"`
			Instances []string `xml:"Instances>member>InstanceId"`
		} `xml:"DescribeAutoScalingGroupsResult>AutoScalingGroups>member"`
	}
	m.autoscaling("DescribeAutoScalingGroups", nil, &groups)
	machines := map[string]string{} // role -> instance
	var made []string
	for _, g := range groups.All {
		made = append(made, fmt.Sprintf("%s %d-%d %s, %d target groups, %d machines", g.Name, g.Min, g.Max, g.Health, len(g.Targets), len(g.Instances)))
		if len(g.Instances) == 1 {
			machines[strings.TrimPrefix(g.Name, "live-")] = g.Instances[0]
		}
	}
	slices.Sort(made)
	must.NoDiff(t, "groups", made, []string{"live-edge 1-10 EC2, 1 target groups, 1 machines", "live-origin 1-10 EC2, 2 target groups, 1 machines"})
	for role, id := range machines {
		m.checkHooks(role, id)
	}
}

// agent is the agent's own client on a machine of moto's, whose metadata are a stand-in's.
func (m *moto) agent(id string) *aws.Provider {
	m.t.Helper()
	instance := fakeaws.Sample()
	instance.ID, instance.Region, instance.Tags = id, motoRegion, nil
	meta, err := fakeaws.Start(m.t.Context(), fakeaws.Options{Instance: &instance})
	must.OK(m.t, err)
	m.t.Cleanup(func() { _ = meta.Close() })
	provider, err := aws.New(cloud.Options{Endpoints: map[string]string{"aws": meta.Endpoint(), aws.EndpointAutoScaling: m.origin}})
	must.OK(m.t, err)
	return provider
}

func (m *moto) checkHooks(role, id string) {
	m.t.Helper()
	hooks, _ := loadAWS(m.t).of(strings.ToUpper(role[:1]) + role[1:] + "s")["LifecycleHookSpecificationList"].([]any)
	for _, h := range hooks {
		h := h.(object)
		m.autoscaling("PutLifecycleHook", url.Values{
			"AutoScalingGroupName": {"live-" + role}, "LifecycleHookName": {fmt.Sprint(h["LifecycleHookName"])}, "LifecycleTransition": {fmt.Sprint(h["LifecycleTransition"])},
			"HeartbeatTimeout": {fmt.Sprint(h["HeartbeatTimeout"])}, "DefaultResult": {fmt.Sprint(h["DefaultResult"])},
		}, nil)
	}
	hooksOf := m.agent(id)
	for name, launching := range map[string]bool{"amsagent-launch": true, "amsagent-terminate": false} {
		found, err := cloud.Filter(nil).Find(m.t.Context(), hooksOf, launching, nil)
		if err != nil || len(found) != 1 || found[0].Name != name || found[0].Group != "live-"+role {
			m.t.Errorf("live-%s: the agent finds the hooks %+v, %v; want %s", role, found, err, name)
		}
	}
}
