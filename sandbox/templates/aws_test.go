// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/aws"
)

const (
	awsCloudFormation = "../../packaging/cloud/aws/cloudformation.yaml"
	awsTerraform      = "../../packaging/cloud/aws/terraform"
)

// awsFacts: the agent's readiness decides who gets new viewers and never who is replaced, a machine that starts or ends waits for
// its agent, and each role has what the agent says that it needs, and one right to the secret.
var awsFacts = facts{
	says: map[string]string{
		"Parameters.DrainSeconds":                   `Default: 3600`,
		"Parameters.HookSeconds":                    `Default: 300`,
		"Parameters.LaunchSeconds":                  `Default: 900`,
		"Parameters.OriginMin Parameters.EdgeMin":   `Default: 1`,
		"Parameters.OriginMax Parameters.EdgeMax":   `Default: 10`,
		"Parameters.OriginType Parameters.EdgeType": `Default: c7i.xlarge`,
		"Parameters.SessionManager":                 `Default: 'no'`,
		"Balancer": `
			Type: application
			SecurityGroups: [!Ref BalancerGroup]`,
		"RtmpBalancer": `
			Type: network
			SecurityGroups: [!Ref RtmpGroup]
			- {Key: load_balancing.cross_zone.enabled, Value: 'true'}`,
		"OriginTargets EdgeTargets": `
			Protocol: HTTP
			Port: 5080
			HealthCheckProtocol: HTTP
			HealthCheckPort: '9771'
			HealthCheckPath: /readyz
			HealthCheckIntervalSeconds: 10
			HealthyThresholdCount: 2
			UnhealthyThresholdCount: 2
			Matcher: {HttpCode: '200'}
			- {Key: deregistration_delay.timeout_seconds, Value: !Ref DrainSeconds}
			- {Key: stickiness.enabled, Value: 'true'}`,
		"RtmpTargets": `
			Protocol: TCP
			Port: 1935
			HealthCheckProtocol: HTTP
			HealthCheckPort: '9771'
			HealthCheckPath: /readyz
			HealthCheckIntervalSeconds: 10
			HealthyThresholdCount: 2
			UnhealthyThresholdCount: 2
			Matcher: {HttpCode: '200'}
			- {Key: deregistration_delay.timeout_seconds, Value: !Ref DrainSeconds}
			- {Key: deregistration_delay.connection_termination.enabled, Value: 'false'}
			- {Key: target_health_state.unhealthy.connection_termination.enabled, Value: 'false'}`,
		"HttpsListener EdgeHttpsListener": `
			Condition: HasCertificate
			Certificates: [{CertificateArn: !Ref Certificate}]`,
		"MongoDisk": `
			DeletionPolicy: Snapshot
			UpdateReplacePolicy: Snapshot
			VolumeType: gp3
			Encrypted: true
			SnapshotId: !If [HasSnapshot, !Ref MongoSnapshot, !Ref AWS::NoValue]`,
		"MongoAttachment": `
			InstanceId: !Ref Mongo
			VolumeId: !Ref MongoDisk`,
		"MongoProfile": `Properties: {Roles: [!Ref MongoRole]}`,
		"Mongo": `
			ImageId: !Ref MongoImage
			IamInstanceProfile: !Ref MongoProfile
			- {DeviceIndex: '0', SubnetId: !Ref SubnetA, GroupSet: [!Ref MongoGroup], AssociatePublicIpAddress: true, DeleteOnTermination: true}
			MetadataOptions: {HttpTokens: required, HttpEndpoint: enabled, HttpPutResponseHopLimit: 1}
			- {DeviceName: /dev/xvda, Ebs: {VolumeType: gp3, VolumeSize: 16, Encrypted: true, DeleteOnTermination: true}}
			trap 'word FAILURE "see /var/log/cloud-init-output.log"' EXIT
			set -e
			aws secretsmanager put-secret-value --region "$region" --secret-id "$vault" --secret-string "file://$uri" >/dev/null
			trap - EXIT
			word SUCCESS 'MongoDB takes connections'`,
		"MongoReady": `
			DependsOn: MongoAttachment
			Handle: !Ref MongoReadyHandle`,
		"OriginProfile EdgeProfile": `Properties: {Roles: [!Ref {Role}Role]}`,
		"OriginTemplate EdgeTemplate": `
			ImageId: !Ref NodeImage
			InstanceType: !Ref {Role}Type
			IamInstanceProfile: {Arn: !GetAtt {Role}Profile.Arn}
			MetadataOptions: {HttpTokens: required, HttpEndpoint: enabled, HttpPutResponseHopLimit: 1, InstanceMetadataTags: enabled}
			- {DeviceName: /dev/xvda, Ebs: {VolumeType: gp3, VolumeSize: 30, Encrypted: true, DeleteOnTermination: true}}
			- ResourceType: instance
			Tags: [{Key: Name, Value: !Sub '${AWS::StackName}-{role}'}, {Key: 'amsagent:role', Value: {role}}]`,
		"OriginTemplate": `- {DeviceIndex: 0, AssociatePublicIpAddress: true, DeleteOnTermination: true, Groups: [!Ref NodeGroup, !Ref OriginGroup]}`,
		"EdgeTemplate":   `- {DeviceIndex: 0, AssociatePublicIpAddress: true, DeleteOnTermination: true, Groups: [!Ref NodeGroup]}`,
		"Origins":        `TargetGroupARNs: [!Ref OriginTargets, !Ref RtmpTargets]`,
		"Edges":          `TargetGroupARNs: [!Ref EdgeTargets]`,
		"Origins Edges": `
			DependsOn: [MongoReady, DefaultRoute, SubnetARoutes, SubnetBRoutes]
			AutoScalingGroupName: !Sub '${AWS::StackName}-{role}'
			MinSize: !Ref {Role}Min
			MaxSize: !Ref {Role}Max
			VPCZoneIdentifier: [!Ref SubnetA, !Ref SubnetB]
			LaunchTemplate: {LaunchTemplateId: !Ref {Role}Template, Version: !GetAtt {Role}Template.LatestVersionNumber}
			HealthCheckType: EC2
			LifecycleTransition: autoscaling:EC2_INSTANCE_LAUNCHING
			HeartbeatTimeout: !Ref LaunchSeconds
			DefaultResult: ABANDON
			LifecycleTransition: autoscaling:EC2_INSTANCE_TERMINATING
			HeartbeatTimeout: !Ref HookSeconds
			DefaultResult: CONTINUE`,
		"OriginScaling EdgeScaling": `
			AutoScalingGroupName: !Ref {Role}s
			PolicyType: TargetTrackingScaling
			PredefinedMetricSpecification: {PredefinedMetricType: ASGAverageCPUUtilization}
			TargetValue: 60
			DisableScaleIn: false`,
	},
	lists: map[string]string{
		`^LoadBalancerArn: !Ref (\w+)\nProtocol: (\w+)\nPort: (\d+)(?:\n.+){0,2}\n.*TargetGroupArn: !Ref (\w+)`: `
			Balancer HTTP 80 OriginTargets
			Balancer HTTP 5080 EdgeTargets
			Balancer HTTPS 443 OriginTargets
			Balancer HTTPS 5443 EdgeTargets
			RtmpBalancer TCP 1935 RtmpTargets`,
		`^(\w+Group):$|(?:GroupId: !Ref (\w+), )?(IpProtocol.*), Description`: `
			BalancerGroup
			IpProtocol: tcp, FromPort: 80, ToPort: 80, CidrIp: !Ref ViewerCidr
			IpProtocol: tcp, FromPort: 443, ToPort: 443, CidrIp: !Ref ViewerCidr
			IpProtocol: tcp, FromPort: 5080, ToPort: 5080, CidrIp: !Ref ViewerCidr
			IpProtocol: tcp, FromPort: 5443, ToPort: 5443, CidrIp: !Ref ViewerCidr
			RtmpGroup
			IpProtocol: tcp, FromPort: 1935, ToPort: 1935, CidrIp: !Ref PublisherCidr
			NodeGroup
			IpProtocol: udp, FromPort: 50000, ToPort: 60000, CidrIp: !Ref ViewerCidr
			IpProtocol: tcp, FromPort: 5080, ToPort: 5080, SourceSecurityGroupId: !Ref BalancerGroup
			IpProtocol: tcp, FromPort: 9771, ToPort: 9771, SourceSecurityGroupId: !Ref BalancerGroup
			NodeGroup IpProtocol: tcp, FromPort: 5080, ToPort: 5080, SourceSecurityGroupId: !Ref NodeGroup
			NodeGroup IpProtocol: tcp, FromPort: 5000, ToPort: 5000, SourceSecurityGroupId: !Ref NodeGroup
			OriginGroup
			IpProtocol: tcp, FromPort: 1935, ToPort: 1935, SourceSecurityGroupId: !Ref RtmpGroup
			IpProtocol: tcp, FromPort: 9771, ToPort: 9771, SourceSecurityGroupId: !Ref RtmpGroup
			MongoGroup
			IpProtocol: tcp, FromPort: 27017, ToPort: 27017, SourceSecurityGroupId: !Ref NodeGroup`,
		`^(Has\w+: .+)`: `
			HasCertificate: !Not [!Equals [!Ref Certificate, '']]
			HasSessionManager: !Equals [!Ref SessionManager, 'yes']
			HasSnapshot: !Not [!Equals [!Ref MongoSnapshot, '']]`,
		`(IpProtocol)`: strings.Repeat("IpProtocol\n", 13),
		`^(\w+Role):$|^Type: AWS::(IAM::.+)|(Principal: .+), Action: sts|(\[HasSessionManager, .*policy/\w+|\w*SecretString:)`: `
			MongoRole
			IAM::Role
			Principal: {Service: !Sub 'ec2.${AWS::URLSuffix}'}
			[HasSessionManager, !Sub 'arn:${AWS::Partition}:iam::aws:policy/AmazonSSMManagedInstanceCore
			IAM::InstanceProfile
			OriginRole
			IAM::Role
			Principal: {Service: !Sub 'ec2.${AWS::URLSuffix}'}
			[HasSessionManager, !Sub 'arn:${AWS::Partition}:iam::aws:policy/AmazonSSMManagedInstanceCore
			EdgeRole
			IAM::Role
			Principal: {Service: !Sub 'ec2.${AWS::URLSuffix}'}
			[HasSessionManager, !Sub 'arn:${AWS::Partition}:iam::aws:policy/AmazonSSMManagedInstanceCore
			IAM::InstanceProfile
			IAM::InstanceProfile`,
	},
}

func loadAWS(t *testing.T) *stack {
	t.Helper()
	return loadStack(t, awsCloudFormation, map[string]any{
		"AWS::StackName": "NAME", "AWS::Region": "REGION", "AWS::AccountId": "ACCOUNT", "AWS::Partition": "PARTITION",
		"MongoSecret": "SECRET", "MongoReadyHandle": "https://HANDLE/?a=b&c=d", "MongoDisk": "vol-0abc",
	})
}

func TestAWSCloudFormation(t *testing.T) {
	c := loadAWS(t)
	c.check(t, awsFacts)
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
		"variable.drain_seconds":   `default = 3600`,
		"variable.hook_seconds":    `default = 300`,
		"variable.launch_seconds":  `default = 900`,
		"variable.session_manager": `default = false`,
		"aws_iam_role_policy_attachment.session_manager": `
			for_each = var.session_manager ? {
			} : {}`,
		"aws_subnet.cluster": `count = 2`,
		"aws_lb.cluster": `
			load_balancer_type = "application"
			security_groups = [aws_security_group.balancer.id]
			idle_timeout = 300`,
		"aws_lb.rtmp": `
			load_balancer_type = "network"
			security_groups = [aws_security_group.rtmp.id]
			enable_cross_zone_load_balancing = true`,
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
			vpc_zone_identifier = aws_subnet.cluster[*].id
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

// TestAWSPolicy: what the template permits is what the agent itself says that it needs, and the secret.
func TestAWSPolicy(t *testing.T) {
	c := loadAWS(t)
	for _, role := range []string{"Origin", "Edge"} {
		want := []string{"Allow secretsmanager:GetSecretValue on SECRET"}
		for _, s := range ownPolicy(t, aws.Policy("", "", "NAME-"+strings.ToLower(role))) {
			want = append(want, "Allow "+strings.Join(sorted(s.Action), " ")+" on "+strings.Replace(s.Resource, "arn:aws:autoscaling:*:*:", "arn:PARTITION:autoscaling:REGION:ACCOUNT:", 1))
		}
		if diff := gocmp.Diff(sorted(want), c.statements(role+"Role")); diff != "" {
			t.Errorf("-agent +template:\n%s", diff)
		}
	}
	if diff := gocmp.Diff([]string{"Allow secretsmanager:PutSecretValue on SECRET"}, c.statements("MongoRole")); diff != "" {
		t.Errorf("-want +template:\n%s", diff)
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
