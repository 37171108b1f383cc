// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/aws"
)

const (
	awsCloudFormation = "../../packaging/cloud/aws/cloudformation.yaml"
	awsTerraform      = "../../packaging/cloud/aws/terraform"
)

func loadAWS(t *testing.T) *stack {
	t.Helper()
	return loadStack(t, awsCloudFormation, map[string]any{
		"AWS::StackName": "NAME", "AWS::Region": "REGION", "AWS::AccountId": "ACCOUNT", "AWS::Partition": "PARTITION",
		"MongoSecret": "SECRET", "MongoReadyHandle": "https://HANDLE/?a=b&c=d", "MongoDisk": "vol-0abc",
	})
}

func TestAWSCloudFormation(t *testing.T) {
	c := loadAWS(t)
	c.meets(t, "cloudformation")
	c.references()
}

// awsUserData is that of a node ("edge") or of MongoDB's machine ("mongo").
func awsUserData(t *testing.T, role string) string {
	t.Helper()
	c := loadAWS(t)
	if role == "mongo" {
		return fmt.Sprint(c.of("Mongo")["UserData"])
	}
	return fmt.Sprint(at(c.of(strings.ToUpper(role[:1])+role[1:]+"Template"), "LaunchTemplateData", "UserData"))
}

func TestAWSTerraform(t *testing.T) {
	s := read(t, awsTerraform+"/*.tf")
	s.meets(t, "terraform")
	s.references(t)
}

// awsTerraformNode is the user data of a node, the same for each role.
func awsTerraformNode(t *testing.T) string {
	t.Helper()
	return filled(t, read(t, awsTerraform+"/*.tf").heredoc(t), "${", "}", map[string]string{"var.region": "REGION", "aws_secretsmanager_secret.mongo.arn": "SECRET"})
}

// awsTerraformMongo is the user data of MongoDB's machine.
func awsTerraformMongo(t *testing.T) string {
	t.Helper()
	return filled(t, contents(t, awsTerraform+"/mongo.sh.tftpl"), "${", "}", map[string]string{
		"region": "REGION", "secret": "SECRET", "release": "8.0", "databases": "live", "volume": "vol0abc", "install": contents(t, install),
	})
}

// TestAWSPolicy: the templates permit the agent's own policy and the secret, nothing else.
func TestAWSPolicy(t *testing.T) {
	permits := func(group, arn, secret string) []string {
		want := []string{"Allow secretsmanager:GetSecretValue on " + secret}
		for _, s := range ownPolicy(t, aws.Policy("", "", group)) {
			want = append(want, "Allow "+strings.Join(sorted(s.Action), " ")+" on "+strings.Replace(s.Resource, "arn:aws:autoscaling:*:*:", arn, 1))
		}
		return sorted(want)
	}
	c := loadAWS(t)
	for _, role := range []string{"Origin", "Edge"} {
		want := permits("NAME-"+strings.ToLower(role), "arn:PARTITION:autoscaling:REGION:ACCOUNT:", "SECRET")
		must.NoDiff(t, "permissions of "+role, c.statements(role+"Role"), want)
	}
	must.NoDiff(t, "permissions of MongoDB's machine", c.statements("MongoRole"), []string{"Allow secretsmanager:PutSecretValue on SECRET"})

	const secret = "aws_secretsmanager_secret.mongo.arn"
	s := read(t, awsTerraform+"/*.tf")
	for document, want := range map[string][]string{
		"node":  permits("${var.name}-${each.key}", "arn:${data.aws_partition.here.partition}:autoscaling:${var.region}:${data.aws_caller_identity.me.account_id}:", secret),
		"mongo": {"Allow secretsmanager:PutSecretValue on " + secret},
	} {
		var got []string
		for _, statement := range regexp.MustCompile(`(?s)statement \{\n(.+?)\n\}\n`).FindAllStringSubmatch(s.blocks["data.aws_iam_policy_document."+document], -1) {
			plain := strings.NewReplacer("actions = ", "", "\nresources = ", " on ", "[", "", "]", "", `"`, "", ",", "").Replace(statement[1])
			got = append(got, "Allow "+strings.Join(strings.Fields(plain), " "))
		}
		must.NoDiff(t, "permissions of "+document+" in the module", sorted(got), want)
	}
}

// statement is one of a policy that the agent prints.
type statement struct {
	Action   []string
	Resource string
}

func ownPolicy(t *testing.T, policy string) []statement {
	t.Helper()
	var p struct{ Statement []statement }
	must.OK(t, json.Unmarshal([]byte(policy), &p))
	return p.Statement
}
