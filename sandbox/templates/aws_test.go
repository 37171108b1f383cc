// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
)

const (
	awsCloudFormation = "../../packaging/cloud/aws/cloudformation.yaml"
	awsTerraform      = "../../packaging/cloud/aws/terraform"
)

// awsCluster is what a template makes on AWS, with the names of things in the
// words of this test. Both templates have to come out as the same.
type awsCluster struct {
	// Listeners: port, protocol and to whom.
	Listeners []string
	Targets   map[string]awsTargets
	// Rules: who lets in whom, at which ports. What is not here is closed.
	Rules  []string
	Groups map[string]awsGroup
	// Policies: role -> what it may do with what.
	Policies map[string][]string
	Mongo    awsMongo
}

type awsTargets struct {
	Port, Protocol, Health string
	Drain                  string
	Cuts                   bool // connections to a node that is not ready
}

type awsGroup struct {
	Name, Min, Max, Image, Type string
	Subnets                     int
	Targets, Security           []string
	HealthCheck                 string
	Hooks                       []string
	Scaling                     string
	Metadata                    []string
	Tags                        []string
	Encrypted, Public           bool
	UserData                    string
	After                       []string // of what it waits for: the disk of MongoDB, and so on
}

type awsMongo struct {
	Image, Type        string
	Security           []string
	Metadata           []string
	Encrypted          bool
	Disk               string
	Survives           bool
	ConnectionIsEmpty  bool // no value of the secret in the template
	Public             bool
	UserData, Identity string
}

const awsSecret = "SECRET"

// wantAWS is the list that both templates are held against.
func wantAWS() awsCluster {
	health := "HTTP 9771 /readyz 200, every 10 s, 2 up, 2 down"
	hooks := []string{
		"autoscaling:EC2_INSTANCE_LAUNCHING 900 ABANDON",
		"autoscaling:EC2_INSTANCE_TERMINATING 300 CONTINUE",
	}
	join := "#!/bin/sh\nuntil aws secretsmanager get-secret-value --region REGION --secret-id SECRET --query SecretString --output text" +
		" | amsagent join --mongo file:-; do [ $? = 2 ] && exit 2; sleep 15; done\n"
	group := func(role string, targets, security []string) awsGroup {
		return awsGroup{
			Name: "NAME-" + role, Min: "1", Max: "10", Image: "ami-node", Type: "c7i.xlarge", Subnets: 2,
			Targets: targets, Security: security, HealthCheck: "EC2", Hooks: hooks, Scaling: "ASGAverageCPUUtilization 60, out and in",
			Metadata: []string{"enabled", "required", "hops 1", "tags enabled"}, Tags: []string{"Name=NAME-" + role, "amsagent:role=" + role},
			Encrypted: true, Public: true, UserData: join, After: []string{"mongo"},
		}
	}
	policy := func(role string) []string {
		return []string{
			"autoscaling:CompleteLifecycleAction autoscaling:RecordLifecycleActionHeartbeat" +
				" on arn:PARTITION:autoscaling:REGION:ACCOUNT:autoScalingGroup:*:autoScalingGroupName/NAME-" + role,
			"autoscaling:DescribeAutoScalingInstances autoscaling:DescribeLifecycleHooks on *",
			"secretsmanager:GetSecretValue on SECRET",
		}
	}
	return awsCluster{
		Listeners: []string{"1935 TCP rtmp", "443 HTTPS origin", "5080 HTTP edge", "5443 HTTPS edge", "80 HTTP origin"},
		Targets: map[string]awsTargets{
			"origin": {Port: "5080", Protocol: "HTTP", Health: health, Drain: "3600"},
			"edge":   {Port: "5080", Protocol: "HTTP", Health: health, Drain: "3600"},
			"rtmp":   {Port: "1935", Protocol: "TCP", Health: health, Drain: "3600"},
		},
		Rules: []string{
			"balancer tcp 443 from viewers", "balancer tcp 5080 from viewers", "balancer tcp 5443 from viewers", "balancer tcp 80 from viewers",
			"mongo tcp 27017 from node",
			"node tcp 5000 from node", "node tcp 5080 from balancer", "node tcp 5080 from node", "node tcp 9771 from balancer",
			"node udp 50000-60000 from viewers",
			"origin tcp 1935 from rtmp", "origin tcp 9771 from rtmp",
			"rtmp tcp 1935 from publishers",
		},
		Groups: map[string]awsGroup{
			"origin": group("origin", []string{"origin", "rtmp"}, []string{"node", "origin"}),
			"edge":   group("edge", []string{"edge"}, []string{"node"}),
		},
		Policies: map[string][]string{
			"origin": policy("origin"), "edge": policy("edge"), "mongo": {"secretsmanager:PutSecretValue on SECRET"},
		},
		Mongo: awsMongo{
			Image: "ami-mongo", Type: "m7i.large", Security: []string{"mongo"}, Metadata: []string{"enabled", "required", "hops 1"},
			Encrypted: true, Disk: "gp3 50 encrypted", Survives: true, ConnectionIsEmpty: true, Public: true, Identity: "mongo",
		},
	}
}

func loadAWSCloudFormation(t *testing.T) *cloudformation {
	t.Helper()
	return load(t, awsCloudFormation, map[string]any{
		"NodeImage": "ami-node", "MongoImage": "ami-mongo", "Certificate": "arn:aws:acm:eu-west-1:1:certificate/x",
		"ViewerCidr": "198.51.100.0/24", "PublisherCidr": "203.0.113.0/24",
	})
}

func TestAWSCloudFormation(t *testing.T) {
	got := readAWSCloudFormation(t, loadAWSCloudFormation(t))
	got.Mongo.UserData = ""
	if diff := gocmp.Diff(wantAWS(), got); diff != "" {
		t.Errorf("cloudformation.yaml makes something else than wanted (-want +got):\n%s", diff)
	}
}

// TestTerraformForm: as OpenTofu and Terraform write it themselves.
func TestTerraformForm(t *testing.T) {
	tool, err := exec.LookPath("tofu")
	if err != nil {
		if tool, err = exec.LookPath("terraform"); err != nil {
			t.Skip("neither tofu nor terraform is installed: the form is not checked")
		}
	}
	cmd := exec.CommandContext(t.Context(), tool, "fmt", "-check", "-diff", "-recursive", "../../packaging/cloud")
	cmd.Env = append(os.Environ(), "TF_CLI_CONFIG_FILE=/dev/null")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// awsTerraformFacts: what the module makes is what cloudformation.yaml makes.
var awsTerraformFacts = facts{
	says: map[string]string{
		"locals": `
			http = { port = 80, role = "origin", protocol = "HTTP" }
			edge_http = { port = 5080, role = "edge", protocol = "HTTP" }
			var.certificate == "" ? {} : {
			https = { port = 443, role = "origin", protocol = "HTTPS" }
			edge_https = { port = 5443, role = "edge", protocol = "HTTPS" }`,
		"variable.roles": `
			origin = { type = "c7i.xlarge", min = 1, max = 10 }
			edge = { type = "c7i.xlarge", min = 1, max = 10 }`,
		"variable.drain_seconds":  `default = 3600`,
		"variable.hook_seconds":   `default = 300`,
		"variable.launch_seconds": `default = 900`,
		"aws_lb_target_group.node": `
			for_each = var.roles
			protocol = "HTTP"
			port = 5080
			deregistration_delay = var.drain_seconds
			protocol = "HTTP"
			port = "9771"
			path = "/readyz"
			interval = 10
			healthy_threshold = 2
			unhealthy_threshold = 2
			matcher = "200"
			enabled = true`,
		"aws_lb_target_group.rtmp": `
			protocol = "TCP"
			port = 1935
			deregistration_delay = var.drain_seconds
			connection_termination = false
			enable_unhealthy_connection_termination = false
			protocol = "HTTP"
			port = "9771"
			path = "/readyz"
			interval = 10
			healthy_threshold = 2
			unhealthy_threshold = 2
			matcher = "200"`,
		"aws_lb_listener.cluster": `
			for_each = local.balancer_ports
			load_balancer_arn = aws_lb.cluster.arn
			protocol = each.value.protocol
			port = each.value.port
			certificate_arn = each.value.protocol == "HTTPS" ? var.certificate : null
			target_group_arn = aws_lb_target_group.node[each.value.role].arn`,
		"aws_lb_listener.rtmp": `
			load_balancer_arn = aws_lb.rtmp.arn
			protocol = "TCP"
			port = 1935
			target_group_arn = aws_lb_target_group.rtmp.arn`,
		"aws_iam_role_policy.mongo": `
			role = aws_iam_role.mongo.id
			policy = data.aws_iam_policy_document.mongo.json`,
		"aws_iam_role_policy.node": `
			role = aws_iam_role.node[each.key].id
			policy = data.aws_iam_policy_document.node[each.key].json`,
		"aws_iam_instance_profile.mongo": `role = aws_iam_role.mongo.name`,
		"aws_iam_instance_profile.node":  `role = aws_iam_role.node[each.key].name`,
		"aws_ebs_volume.mongo": `
			size = var.mongo_disk_size
			type = "gp3"
			encrypted = true
			snapshot_id = var.mongo_snapshot == "" ? null : var.mongo_snapshot
			final_snapshot = true`,
		"aws_instance.mongo": `
			ami = var.mongo_image
			vpc_security_group_ids = [aws_security_group.mongo.id]
			iam_instance_profile = aws_iam_instance_profile.mongo.name
			http_endpoint = "enabled"
			http_tokens = "required"
			http_put_response_hop_limit = 1
			encrypted = true
			user_data_base64 = base64gzip(templatefile("${path.module}/mongo.sh.tftpl", {
			region = var.region
			secret = aws_secretsmanager_secret.mongo.arn
			release = var.mongo_release
			databases = join(",", var.mongo_databases)
			volume = replace(aws_ebs_volume.mongo.id, "-", "")
			install = file("${path.module}/../../../image/mongodb/install.sh")
			}))`,
		"aws_launch_template.node": `
			for_each = var.roles
			image_id = var.node_image
			arn = aws_iam_instance_profile.node[each.key].arn
			http_endpoint = "enabled"
			http_tokens = "required"
			http_put_response_hop_limit = 1
			instance_metadata_tags = "enabled"
			associate_public_ip_address = true
			security_groups = each.key == "origin" ? [aws_security_group.node.id, aws_security_group.origin.id] : [aws_security_group.node.id]
			encrypted = true
			resource_type = "instance"
			tags = { Name = "${var.name}-${each.key}", "amsagent:role" = each.key }`,
		"aws_autoscaling_group.node": `
			for_each = var.roles
			name = "${var.name}-${each.key}"
			min_size = each.value.min
			max_size = each.value.max
			id = aws_launch_template.node[each.key].id
			version = aws_launch_template.node[each.key].latest_version
			target_group_arns = each.key == "origin" ? [aws_lb_target_group.node["origin"].arn, aws_lb_target_group.rtmp.arn] : [aws_lb_target_group.node["edge"].arn]
			health_check_type = "EC2"
			lifecycle_transition = "autoscaling:EC2_INSTANCE_LAUNCHING"
			heartbeat_timeout = var.launch_seconds
			default_result = "ABANDON"
			lifecycle_transition = "autoscaling:EC2_INSTANCE_TERMINATING"
			heartbeat_timeout = var.hook_seconds
			default_result = "CONTINUE"
			aws_volume_attachment.mongo, aws_iam_role_policy.node, aws_route_table_association.cluster,`,
		"aws_autoscaling_policy.cpu": `
			autoscaling_group_name = aws_autoscaling_group.node[each.key].name
			policy_type = "TargetTrackingScaling"
			predefined_metric_type = "ASGAverageCPUUtilization"
			target_value = 60
			disable_scale_in = false`,
	},
	lists: map[string]string{
		`^(?:for_each = (.+)\n)?security_group_id = aws_security_group\.(\w+)\.id\ndescription = .+\nip_protocol = "(\w+)"\nfrom_port = (\S+)\nto_port = (\S+)\n\w+ = (.+)`: `
			local.balancer_ports balancer tcp each.value.port each.value.port var.viewer_cidr
			rtmp tcp 1935 1935 var.publisher_cidr
			node udp 50000 60000 var.viewer_cidr
			node tcp 5080 5080 aws_security_group.balancer.id
			node tcp 9771 9771 aws_security_group.balancer.id
			node tcp 5080 5080 aws_security_group.node.id
			node tcp 5000 5000 aws_security_group.node.id
			origin tcp 1935 1935 aws_security_group.rtmp.id
			origin tcp 9771 9771 aws_security_group.rtmp.id
			mongo tcp 27017 27017 aws_security_group.node.id`,
		`^(ingress\b.*|from_port)|^resource "aws_(?:security|network)\w*_(rule|acl\w*)"|^resource "aws_vpc_security_group_(ingress)`: strings.Repeat("ingress\nfrom_port\n", 10),
		`^data "aws_iam_policy_document" "(\w+)"|^(?:actions|resources|policy_arn) = (.+)|^("arn:.+"),|^(secret_string.*)`: `
			ec2
			["sts:AssumeRole"]
			mongo
			["secretsmanager:PutSecretValue"]
			[aws_secretsmanager_secret.mongo.arn]
			node
			["autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"]
			[
			"arn:${data.aws_partition.here.partition}:autoscaling:${var.region}:${data.aws_caller_identity.me.account_id}:autoScalingGroup:*:autoScalingGroupName/${var.name}-${each.key}"
			["autoscaling:DescribeAutoScalingInstances", "autoscaling:DescribeLifecycleHooks"]
			["*"]
			["secretsmanager:GetSecretValue"]
			[aws_secretsmanager_secret.mongo.arn]
			"arn:${data.aws_partition.here.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"`,
		`^resource "(aws_iam\w+|aws_secret\w+)" "(\w+)"`: `
			aws_secretsmanager_secret mongo
			aws_iam_role mongo
			aws_iam_role_policy mongo
			aws_iam_instance_profile mongo
			aws_iam_role node
			aws_iam_role_policy node
			aws_iam_instance_profile node
			aws_iam_role_policy_attachment session_manager`,
	},
}

func TestAWSTerraform(t *testing.T) {
	s := read(t, awsTerraform+"/*.tf")
	s.check(t, awsTerraformFacts)
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

// TestAWSPolicy: what the templates permit is what the agent itself says that it
// needs, and the secret.
func TestAWSPolicy(t *testing.T) {
	provider, err := aws.New(cloud.Options{})
	must.OK(t, err)
	api, err := provider.AutoScaling(aws.AutoScalingOptions{})
	must.OK(t, err)
	var want []string
	for _, s := range ownPolicy(t, api.Policy("NAME-edge")) {
		slices.Sort(s.Action)
		resource := strings.NewReplacer("arn:aws:autoscaling:*:*:", "arn:PARTITION:autoscaling:REGION:ACCOUNT:").Replace(s.Resource)
		want = append(want, strings.Join(s.Action, " ")+" on "+resource)
	}
	want = append(want, "secretsmanager:GetSecretValue on SECRET")
	slices.Sort(want)
	if diff := gocmp.Diff(want, wantAWS().Policies["edge"]); diff != "" {
		t.Errorf("-agent +template:\n%s", diff)
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

func num(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

func strs(v any) []string {
	var out []string
	list, ok := v.([]any)
	if !ok && v != nil {
		list = []any{v}
	}
	for _, e := range list {
		out = append(out, fmt.Sprint(e))
	}
	return out
}

func ports(from, to any) string {
	if num(from) == num(to) {
		return num(from)
	}
	return num(from) + "-" + num(to)
}

func who(cidr any) string {
	switch cidr {
	case "198.51.100.0/24":
		return "viewers"
	case "203.0.113.0/24":
		return "publishers"
	}
	return num(cidr)
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}

// statements are a policy as lines. Whoever denies or names no resource is told as such.
func statements(list []any) []string {
	var out []string
	for _, e := range list {
		s := e.(object)
		line := strings.Join(sorted(strs(cmp.Or[any](s["Action"], s["actions"]))), " ") + " on " +
			strings.Join(strs(cmp.Or[any](s["Resource"], s["resources"])), " ")
		if effect := cmp.Or[any](s["Effect"], s["effect"], "Allow"); effect != "Allow" {
			line = num(effect) + " " + line
		}
		out = append(out, line)
	}
	return sorted(out)
}

// readAWSCloudFormation tells what the template makes in the words of the test.
func readAWSCloudFormation(t *testing.T, c *cloudformation) awsCluster {
	t.Helper()
	words := strings.NewReplacer("${AWS::StackName}", "NAME", "${AWS::Region}", "REGION", "${AWS::AccountId}", "ACCOUNT",
		"${AWS::Partition}", "PARTITION", "${MongoSecret}", awsSecret, "${MongoReadyHandle}", "https://HANDLE/?a=b&c=d", "${MongoDisk}", "vol0abc")
	say := func(v any) string { return words.Replace(num(v)) }
	// ${OriginTargets} -> origin
	name := func(v any, suffix string) string {
		s := strings.TrimSuffix(strings.TrimPrefix(num(v), "${"), "}")
		if !strings.HasSuffix(s, suffix) || s == suffix {
			t.Errorf("%v is no %s", v, suffix)
		}
		return strings.ToLower(strings.TrimSuffix(s, suffix))
	}
	names := func(v any, suffix string) []string {
		var out []string
		for _, s := range strs(v) {
			out = append(out, name(s, suffix))
		}
		return sorted(out)
	}
	out := awsCluster{Targets: map[string]awsTargets{}, Groups: map[string]awsGroup{}, Policies: map[string][]string{}}

	for _, l := range c.of("AWS::ElasticLoadBalancingV2::Listener") {
		action := l["DefaultActions"].([]any)[0].(object)
		out.Listeners = append(out.Listeners, fmt.Sprintf("%v %v %s", l["Port"], l["Protocol"], name(action["TargetGroupArn"], "Targets")))
		if balancer := num(l["LoadBalancerArn"]); (balancer == "${RtmpBalancer}") != (l["Protocol"] == "TCP") {
			t.Errorf("%v is at %s", l["Port"], balancer)
		}
	}
	slices.Sort(out.Listeners)
	for key, g := range c.of("AWS::ElasticLoadBalancingV2::TargetGroup") {
		attributes := map[string]string{}
		for _, a := range g["TargetGroupAttributes"].([]any) {
			attributes[num(a.(object)["Key"])] = num(a.(object)["Value"])
		}
		out.Targets[strings.ToLower(strings.TrimSuffix(key, "Targets"))] = awsTargets{
			Port: num(g["Port"]), Protocol: num(g["Protocol"]), Drain: attributes["deregistration_delay.timeout_seconds"],
			Health: fmt.Sprintf("%v %v %v %v, every %v s, %v up, %v down", g["HealthCheckProtocol"], g["HealthCheckPort"], g["HealthCheckPath"],
				g["Matcher"].(object)["HttpCode"], g["HealthCheckIntervalSeconds"], g["HealthyThresholdCount"], g["UnhealthyThresholdCount"]),
			Cuts: g["Protocol"] == "TCP" && (attributes["target_health_state.unhealthy.connection_termination.enabled"] != "false" ||
				attributes["deregistration_delay.connection_termination.enabled"] != "false"),
		}
	}
	rule := func(group string, r object) {
		from := who(r["CidrIp"])
		if s := r["SourceSecurityGroupId"]; s != nil {
			from = name(s, "Group")
		}
		out.Rules = append(out.Rules, fmt.Sprintf("%s %v %s from %s", group, r["IpProtocol"], ports(r["FromPort"], r["ToPort"]), from))
	}
	for key, g := range c.of("AWS::EC2::SecurityGroup") {
		list, _ := g["SecurityGroupIngress"].([]any)
		for _, r := range list {
			rule(strings.ToLower(strings.TrimSuffix(key, "Group")), r.(object))
		}
	}
	for _, r := range c.of("AWS::EC2::SecurityGroupIngress") {
		rule(name(r["GroupId"], "Group"), r)
	}
	slices.Sort(out.Rules)

	for key, r := range c.of("AWS::IAM::Role") {
		var list []string
		for _, p := range r["Policies"].([]any) {
			for _, s := range statements(p.(object)["PolicyDocument"].(object)["Statement"].([]any)) {
				list = append(list, words.Replace(s))
			}
		}
		list = append(list, strs(r["ManagedPolicyArns"])...)
		out.Policies[strings.ToLower(strings.TrimSuffix(key, "Role"))] = list
	}
	profiles := c.of("AWS::IAM::InstanceProfile")
	identity := func(v any) string {
		key := strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(num(v), "${"), "}"), ".Arn")
		return strings.Join(names(profiles[key]["Roles"], "Role"), " ")
	}
	options := func(v any) []string {
		o := v.(object)
		list := []string{num(o["HttpEndpoint"]), num(o["HttpTokens"]), "hops " + num(o["HttpPutResponseHopLimit"])}
		if tags := o["InstanceMetadataTags"]; tags != nil {
			list = append(list, "tags "+num(tags))
		}
		return list
	}
	encrypted := func(v any) bool {
		list, _ := v.([]any)
		for _, d := range list {
			if d.(object)["Ebs"].(object)["Encrypted"] != true {
				return false
			}
		}
		return len(list) > 0
	}
	public := func(v any) (object, bool) {
		n := v.([]any)[0].(object)
		return n, n["AssociatePublicIpAddress"] == true
	}
	scaling := map[string]string{}
	for _, p := range c.of("AWS::AutoScaling::ScalingPolicy") {
		scaling[num(p["AutoScalingGroupName"])] += trackingWords(p["PolicyType"], p["TargetTrackingConfiguration"].(object)["PredefinedMetricSpecification"].(object)["PredefinedMetricType"],
			p["TargetTrackingConfiguration"].(object)["TargetValue"], p["TargetTrackingConfiguration"].(object)["DisableScaleIn"])
	}
	for key, g := range c.of("AWS::AutoScaling::AutoScalingGroup") {
		role := strings.ToLower(strings.TrimSuffix(key, "s"))
		lt := strings.TrimSuffix(strings.TrimPrefix(num(g["LaunchTemplate"].(object)["LaunchTemplateId"]), "${"), "}")
		if got := num(g["LaunchTemplate"].(object)["Version"]); got != "${"+lt+".LatestVersionNumber}" {
			t.Errorf("%s starts version %s", key, got)
		}
		d := c.of("AWS::EC2::LaunchTemplate")[lt]["LaunchTemplateData"].(object)
		nic, isPublic := public(d["NetworkInterfaces"])
		group := awsGroup{
			Name: say(g["AutoScalingGroupName"]), Min: num(g["MinSize"]), Max: num(g["MaxSize"]), Image: num(d["ImageId"]), Type: num(d["InstanceType"]),
			Subnets: len(strs(g["VPCZoneIdentifier"])), Targets: names(g["TargetGroupARNs"], "Targets"), Security: names(nic["Groups"], "Group"),
			HealthCheck: num(g["HealthCheckType"]), Scaling: scaling["${"+key+"}"], Metadata: options(d["MetadataOptions"]),
			Encrypted: encrypted(d["BlockDeviceMappings"]), Public: isPublic, UserData: say(d["UserData"]),
		}
		for _, h := range g["LifecycleHookSpecificationList"].([]any) {
			h := h.(object)
			group.Hooks = append(group.Hooks, fmt.Sprintf("%v %v %v", h["LifecycleTransition"], h["HeartbeatTimeout"], h["DefaultResult"]))
		}
		slices.Sort(group.Hooks)
		for _, spec := range d["TagSpecifications"].([]any) {
			if spec := spec.(object); spec["ResourceType"] == "instance" {
				for _, tag := range spec["Tags"].([]any) {
					group.Tags = append(group.Tags, num(tag.(object)["Key"])+"="+say(tag.(object)["Value"]))
				}
			}
		}
		slices.Sort(group.Tags)
		checkTagKeys(t, group.Tags)
		// The groups come when the machine of MongoDB has said that it is ready.
		for _, on := range strs(c.all[key]["DependsOn"]) {
			if c.all[on]["Type"] == "AWS::CloudFormation::WaitCondition" {
				group.After = append(group.After, "mongo")
			}
		}
		if got := identity(d["IamInstanceProfile"].(object)["Arn"]); got != role {
			t.Errorf("%s has the role %s", key, got)
		}
		out.Groups[role] = group
	}

	m := c.of("AWS::EC2::Instance")["Mongo"]
	nic, isPublic := public(m["NetworkInterfaces"])
	disk := c.of("AWS::EC2::Volume")["MongoDisk"]
	secret := c.of("AWS::SecretsManager::Secret")["MongoSecret"]
	out.Mongo = awsMongo{
		Image: num(m["ImageId"]), Type: num(m["InstanceType"]), Security: names(nic["GroupSet"], "Group"), Metadata: options(m["MetadataOptions"]),
		Encrypted: encrypted(m["BlockDeviceMappings"]), Public: isPublic, Identity: identity(m["IamInstanceProfile"]), UserData: say(m["UserData"]),
		Disk:              diskWords(disk["VolumeType"], disk["Size"], disk["Encrypted"]),
		Survives:          c.all["MongoDisk"]["DeletionPolicy"] == "Snapshot" && c.all["MongoDisk"]["UpdateReplacePolicy"] == "Snapshot",
		ConnectionIsEmpty: secret["SecretString"] == nil && secret["GenerateSecretString"] == nil,
	}
	if a := c.of("AWS::EC2::VolumeAttachment")["MongoAttachment"]; a["VolumeId"] != "${MongoDisk}" || a["InstanceId"] != "${Mongo}" {
		t.Errorf("the disk of MongoDB is attached as %v", a)
	}
	return out
}

func trackingWords(kind, metric, target, noIn any) string {
	if kind != "TargetTrackingScaling" {
		return num(kind)
	}
	direction := "out and in"
	if noIn != false {
		direction = "out"
	}
	return fmt.Sprintf("%v %v, %s", metric, target, direction)
}

func diskWords(kind, size, encrypted any) string {
	words := fmt.Sprintf("%v %v", kind, size)
	if encrypted == true {
		words += " encrypted"
	}
	return words
}

// A machine with tags in its metadata does not start where a key has another letter (facts of EC2's user guide).
var tagKey = regexp.MustCompile(`^[A-Za-z0-9+=.,_:@-]+$`)

func checkTagKeys(t *testing.T, tags []string) {
	t.Helper()
	for _, tag := range tags {
		if key, _, _ := strings.Cut(tag, "="); !tagKey.MatchString(key) {
			t.Errorf("the tag %q cannot be shown in the metadata", key)
		}
	}
}
