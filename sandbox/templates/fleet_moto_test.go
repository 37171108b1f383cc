// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package templates

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// awsStandIn does with botocore what the command aws does with its words: it finds the operation and the parameters by their names,
// checks them, and sends the request to $MOTO, or sends nothing without it.
const awsStandIn = `import json, os, sys
import boto3
from botocore import xform_name
from botocore.validate import validate_parameters
service, operation, words = sys.argv[1], sys.argv[2], sys.argv[3:]
region = words[words.index('--region') + 1]
client = boto3.client(service, region_name=region, endpoint_url=os.environ.get('MOTO'), aws_access_key_id='x', aws_secret_access_key='x')
model = client.meta.service_model
name = next(n for n in model.operation_names if xform_name(n, '-') == operation)
shape = model.operation_model(name).input_shape
members = {xform_name(m, '-'): m for m in shape.members}
params = {}
while words:
    flag = words.pop(0).removeprefix('--')
    if flag == 'region':
        words.pop(0)
    elif flag.startswith('no-') and flag[3:] in members:
        params[members[flag[3:]]] = False
    elif shape.members[members[flag]].type_name == 'boolean':
        params[members[flag]] = True
    else:
        kind, value = shape.members[members[flag]].type_name, words.pop(0)
        if kind == 'structure' or value.startswith('['):
            value = json.loads(value)
        elif kind == 'list':
            value = [value]
            while words and not words[0].startswith('--'):
                value.append(words.pop(0))
        elif kind == 'integer':
            value = int(value)
        params[members[flag]] = value
validate_parameters(params, shape)
if 'MOTO' in os.environ:
    getattr(client, xform_name(name))(**params)
`

// TestFleetInMoto: moto takes the policy of the guide, and the guide's script protects a machine there while it has sessions.
// botocore takes the parameters of the other commands of the two guides, which moto does not know.
func TestFleetInMoto(t *testing.T) {
	t.Parallel()
	needs(t, "jq")
	m, dir := startMoto(t), t.TempDir()
	must.OK(t, os.WriteFile(filepath.Join(dir, "aws.py"), []byte(awsStandIn), 0o600))
	must.OK(t, os.WriteFile(filepath.Join(dir, "aws"), []byte("#!/bin/sh\nexec python3 -s "+dir+"/aws.py \"$@\"\n"), 0o755))
	environ := append(awsTool(t, "moto_server").Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	run := func(environ []string, command string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
		cmd.Env = environ
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
	}

	m.autoscaling("CreateLaunchConfiguration", url.Values{"LaunchConfigurationName": {"edge"}, "ImageId": {m.image()}, "InstanceType": {"c7i.xlarge"}}, nil)
	m.autoscaling("CreateAutoScalingGroup", url.Values{
		"AutoScalingGroupName": {"ams-edge"}, "LaunchConfigurationName": {"edge"}, "MinSize": {"1"}, "MaxSize": {"2"}, "AvailabilityZones.member.1": {motoRegion + "a"},
	}, nil)

	sent := 0
	for _, c := range guideCommands(t) {
		if !slices.Contains([]string{rollingGuide, autoscalingGuide}, c.file) || !strings.HasPrefix(c.text, "aws ") {
			continue
		}
		sent++
		if strings.Contains(c.text, " put-scaling-policy ") {
			run(append(environ, "MOTO="+m.origin), c.text)
		} else {
			run(environ, c.text)
		}
	}
	if sent < 4 {
		t.Errorf("%d commands of aws in the guides", sent)
	}
	var policies struct {
		All []struct {
			Name   string  `xml:"PolicyName"`
			Target float64 `xml:"TargetTrackingConfiguration>TargetValue"`
			Metric string  `xml:"TargetTrackingConfiguration>CustomizedMetricSpecification>MetricName"`
			Role   string  `xml:"TargetTrackingConfiguration>CustomizedMetricSpecification>Dimensions>member>Value"`
		} `xml:"DescribePoliciesResult>ScalingPolicies>member"`
	}
	m.autoscaling("DescribePolicies", nil, &policies)
	if len(policies.All) != 1 || policies.All[0].Target != 0.6 || policies.All[0].Metric != "amsagent_cluster_score_ratio" || policies.All[0].Role != "edge" {
		t.Errorf("the policies are %+v", policies.All)
	}

	type machines struct {
		All []struct {
			ID        string `xml:"InstanceId"`
			Protected bool   `xml:"ProtectedFromScaleIn"`
		} `xml:"DescribeAutoScalingInstancesResult>AutoScalingInstances>member"`
	}
	var before machines
	m.autoscaling("DescribeAutoScalingInstances", nil, &before)
	if len(before.All) != 1 {
		t.Fatalf("the machines are %+v", before.All)
	}
	agentStandIn(t, dir, before.All[0].ID, "ams-edge", motoRegion)
	script, _ := protectScripts(t, dir)
	for _, s := range []struct {
		status    string
		protected bool
	}{{busyNode, true}, {idleNode, false}, {unknownNode, true}} {
		must.OK(t, os.WriteFile(filepath.Join(dir, "status"), []byte(s.status), 0o600))
		run(append(environ, "MOTO="+m.origin), "sh "+script)
		var now machines
		m.autoscaling("DescribeAutoScalingInstances", nil, &now)
		if len(now.All) != 1 || now.All[0].Protected != s.protected {
			t.Errorf("with %s: %+v", s.status, now.All)
		}
	}
}
