// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// A requirement is what viewers, operators or security need of each template that has a cell for it. source.lacks reads a cell.
type requirement struct {
	what                                       string
	cloudformation, terraform, azure, gcp, ros string
}

var requirements = []requirement{
	{
		what: "the agent's readiness decides within 20 s which node gets new sessions",
		cloudformation: `
			{Role}Targets RtmpTargets | HealthCheckProtocol: HTTP | HealthCheckPort: '9771' | HealthCheckPath: /readyz
				| HealthCheckIntervalSeconds: 10 | UnhealthyThresholdCount: 2 | HttpCode: '200'`,
		terraform: `
			aws_lb_target_group.node aws_lb_target_group.rtmp | health_check { | protocol = "HTTP" | port = "9771" | path = "/readyz"
				| interval = 10 | unhealthy_threshold = 2 | matcher = "200"`,
		azure: `
			gateway | probes: [ | protocol: 'Http' | port: 9771 | path: '/readyz' | interval: 10 | unhealthyThreshold: 2 | statusCodes: ['200'] | probe: { id: '${gatewayId}/probes/ready' }
			rtmp | protocol: 'Http', port: 9771, requestPath: '/readyz', intervalInSeconds: 10, probeThreshold: 2 | probe: { id: '${rtmpId}/probes/ready' }`,
		gcp: `
			google_compute_health_check.ready google_compute_region_health_check.ready | check_interval_sec = 10 | unhealthy_threshold = 2 | port = 9771 | request_path = "/readyz"
			google_compute_backend_service.node | health_checks = [google_compute_health_check.ready.id]
			google_compute_region_backend_service.rtmp | health_checks = [google_compute_region_health_check.ready.id]`,
		ros: `
			{Role}Targets | HealthCheckEnabled: true | HealthCheckProtocol: HTTP | HealthCheckConnectPort: 9771 | HealthCheckPath: /readyz
			RtmpTargets | HealthCheckEnabled: true | HealthCheckType: HTTP | HealthCheckConnectPort: 9771 | HealthCheckUrl: /readyz
			{Role}Targets RtmpTargets | [http_2xx] | HealthCheckInterval: 10 | UnhealthyThreshold: 2`,
	},
	{
		what:           "readiness does not replace a machine: a node that drains is not ready",
		cloudformation: `{Role}s | HealthCheckType: EC2`,
		terraform:      `aws_autoscaling_group.node | health_check_type = "EC2"`,
		azure:          `{role}Set | automaticRepairsPolicy: { enabled: false }`,
		gcp: `
			google_compute_health_check.alive | port = 9771 | request_path = "/healthz"
			google_compute_region_instance_group_manager.node | health_check = google_compute_health_check.alive.id | initial_delay_sec = 600`,
		ros: `{Role}s | HealthCheckType: ECS`,
	},
	{
		what: "a machine that does not join in time is replaced, the first one of a group too",
		cloudformation: `
			Parameters.LaunchSeconds | Default: 900
			{Role}s | autoscaling:EC2_INSTANCE_LAUNCHING | HeartbeatTimeout: !Ref LaunchSeconds | DefaultResult: ABANDON`,
		terraform: `
			variable.launch_seconds | default = 900
			aws_autoscaling_group.node | EC2_INSTANCE_LAUNCHING" | heartbeat_timeout = var.launch_seconds | default_result = "ABANDON"`,
		ros: `
			Parameters.LaunchSeconds | Default: 900
			{Role}Launch | ScalingGroupId: {Ref: {Role}s} | LifecycleTransition: SCALE_OUT | HeartbeatTimeout: {Ref: LaunchSeconds} | DefaultResult: ABANDON
			{Role}Enable | DependsOn: [MongoReady, {Role}Launch, {Role}Terminate`,
	},
	{
		what: "the end of a machine waits for its agent, and only briefly for a dead one",
		cloudformation: `
			Parameters.HookSeconds | Default: 300
			{Role}s | autoscaling:EC2_INSTANCE_TERMINATING | HeartbeatTimeout: !Ref HookSeconds | DefaultResult: CONTINUE`,
		terraform: `
			variable.hook_seconds | default = 300
			aws_autoscaling_group.node | EC2_INSTANCE_TERMINATING" | heartbeat_timeout = var.hook_seconds | default_result = "CONTINUE"`,
		azure: `{role}Set | scheduledEventsProfile: { terminateNotificationProfile: { enable: true, notBeforeTimeout: 'PT15M' } }`,
		ros: `
			Parameters.HookSeconds | Default: 600
			{Role}Terminate | ScalingGroupId: {Ref: {Role}s} | LifecycleTransition: SCALE_IN | HeartbeatTimeout: {Ref: HookSeconds} | DefaultResult: CONTINUE`,
	},
	{
		// Auto Scaling fills in values only if the defaults are exactly these.
		what: "OOS hands the end of a machine to its agent, and one machine without an answer does not end the wait of the others",
		ros: `
			Parameters.Oos | Default: 'yes'
			Conditions.HasOos | {'Fn::Equals': [{Ref: Oos}, 'yes']}
			{Role}Terminate | NotificationArn: {'Fn::If': [HasOos, {'Fn::Sub': 'acs:ess:${ALIYUN::Region}:${ALIYUN::TenantId}:oos/${OosTemplate}'}
			{Role}Terminate | NotificationMetadata: {'Fn::If': [HasOos, {'Fn::Sub': '{"OOSAssumeRole":"${OosRole}"}'}
			OosTemplate | regionId: {Type: String, Default: '${regionId}'} | instanceIds: {Type: List, Default: ['${instanceIds}']}
				| lifecycleHookId: {Type: String, Default: '${lifecycleHookId}'} | lifecycleActionToken: {Type: String, Default: '${lifecycleActionToken}'}
				| lifecycleActionResult: {Type: String, Default: CONTINUE} | OOSAssumeRole: {Type: String, Default: OOSServiceRole} | RamRole: '{{ OOSAssumeRole }}'
				| ACS::ECS::RunCommand | OnError: ACS::END | regionId: '{{ regionId }}' | instanceId: '{{ ACS::TaskLoopItem }}' | RunShellScript
				| Items: '{{ instanceIds }}' | MaxErrors: 100%`,
	},
	{
		what: "the cloud takes no machine without notice, and replaces none for a new image while it has sessions",
		azure: `
			{role}Set | overprovision: false | upgradePolicy: upgrades | priority: 'Regular' | extensions: [health]
			upgradeMode | param upgradeMode string = 'Manual'
			upgrades | mode: upgradeMode | enableAutomaticOSUpgrade: false | maxSurge: true
			health | type: 'ApplicationHealthLinux' | typeHandlerVersion: '2.0' | protocol: 'http' | port: 9771 | requestPath: '/application-health'
				| intervalInSeconds: 10 | numberOfProbes: 6 | gracePeriod: 600`,
		gcp: `
			google_compute_instance_template.node | provisioning_model = "STANDARD" | preemptible = false
			google_compute_region_instance_group_manager.node | type = "OPPORTUNISTIC"`,
		ros: `{Role}Configuration | SpotStrategy: NoSpot`,
	},
	{
		what: "sessions stay on a node that drains: for an hour, and RTMP although the node is not ready",
		cloudformation: `
			Parameters.DrainSeconds | Default: 3600
			{Role}Targets RtmpTargets | deregistration_delay.timeout_seconds, Value: !Ref DrainSeconds
			RtmpTargets | deregistration_delay.connection_termination.enabled, Value: 'false' | target_health_state.unhealthy.connection_termination.enabled, Value: 'false'`,
		terraform: `
			variable.drain_seconds | default = 3600
			aws_lb_target_group.node aws_lb_target_group.rtmp | deregistration_delay = var.drain_seconds
			aws_lb_target_group.rtmp | connection_termination = false | enable_unhealthy_connection_termination = false`,
		azure: `
			drainSeconds | param drainSeconds int = 3600
			gateway | connectionDraining: { enabled: true, drainTimeoutInSec: drainSeconds }
			rtmp | sku: { name: 'Standard' }`,
		gcp: `
			variable.drain_seconds | default = 3600
			google_compute_backend_service.node google_compute_region_backend_service.rtmp | connection_draining_timeout_sec = var.drain_seconds
			google_compute_region_backend_service.rtmp | session_affinity = "NONE"`,
		ros: `{Role}Targets RtmpTargets | ConnectionDrainEnabled: false`,
	},
	{
		what: "the requests of one viewer reach one node, and a silent WebSocket stays open",
		cloudformation: `
			{Role}Targets | stickiness.enabled, Value: 'true'
			Balancer | idle_timeout.timeout_seconds, Value: '300'`,
		terraform: `
			aws_lb_target_group.node | stickiness { | enabled = true
			aws_lb.cluster | idle_timeout = 300`,
		azure: `gateway | cookieBasedAffinity: 'Enabled'`,
		gcp:   `google_compute_backend_service.node | timeout_sec = 86400 | session_affinity = "GENERATED_COOKIE"`,
		ros: `
			{Role}Targets | StickySessionEnabled: true
			HttpListener EdgeHttpListener HttpsListener EdgeHttpsListener | IdleTimeout: 600`,
	},
	{
		what: "80 and 443 lead to origins, 5080 and 5443 to edges, 1935 to origins of all zones",
		cloudformation: `
			all ^LoadBalancerArn: !Ref (\w+)\nProtocol: (\w+)\nPort: (\d+)(?:\n.+){0,2}\n.*TargetGroupArn: !Ref (\w+)
				=> Balancer HTTP 80 OriginTargets; Balancer HTTP 5080 EdgeTargets; Balancer HTTPS 443 OriginTargets; Balancer HTTPS 5443 EdgeTargets; RtmpBalancer TCP 1935 RtmpTargets
			{Role}Targets | Protocol: HTTP | Port: 5080
			RtmpTargets | Protocol: TCP | Port: 1935
			Origins | TargetGroupARNs: [!Ref OriginTargets, !Ref RtmpTargets]
			Edges | TargetGroupARNs: [!Ref EdgeTargets]
			RtmpBalancer | load_balancing.cross_zone.enabled, Value: 'true'`,
		terraform: `
			locals | { port = 80, role = "origin", protocol = "HTTP" } | { port = 5080, role = "edge", protocol = "HTTP" }
			locals | { port = 443, role = "origin", protocol = "HTTPS" } | { port = 5443, role = "edge", protocol = "HTTPS" }
			aws_lb_listener.cluster | for_each = local.balancer_ports | aws_lb.cluster.arn | each.value.protocol | port = each.value.port | aws_lb_target_group.node[each.value.role].arn
			aws_lb_listener.rtmp | aws_lb.rtmp.arn | protocol = "TCP" | port = 1935 | aws_lb_target_group.rtmp.arn
			aws_lb_target_group.node | protocol = "HTTP" | port = 5080
			aws_lb_target_group.rtmp | protocol = "TCP" | port = 1935
			aws_autoscaling_group.node | each.key == "origin" ? [aws_lb_target_group.node["origin"].arn, aws_lb_target_group.rtmp.arn] : [aws_lb_target_group.node["edge"].arn]
			aws_lb.rtmp | enable_cross_zone_load_balancing = true`,
		azure: `
			gateway | { name: 'http', properties: { port: 80 } } | 'https', properties: { port: 443 } | 'edge-http', properties: { port: 5080 } | 'edge-https', properties: { port: 5443 }
			gateway | backendHttpSettingsCollection: [ | protocol: 'Http' | port: 5080
			all ^frontendPort: \{ id: '\$\{gatewayId\}/frontendPorts/(.+)' \} => http; edge-http; https; edge-https
			all ^httpListener: \{ id: '\$\{gatewayId\}/httpListeners/(.+)' \}\n.*/backendAddressPools/(.+)' \} => http origin; edge-http edge; https origin; edge-https edge
			rtmp | frontendPort: 1935 | backendPort: 1935 | backendAddressPool: { id: '${rtmpId}/backendAddressPools/origin' }
			{role}Set | applicationGatewayBackendAddressPools: [{ id: '${gatewayId}/backendAddressPools/{role}' }]
			originSet | loadBalancerBackendAddressPools: [{ id: '${rtmpId}/backendAddressPools/origin' }]`,
		gcp: `
			locals | { port = 80, role = "origin" } | { port = 5080, role = "edge" } | { port = 443, role = "origin" } | { port = 5443, role = "edge" }
			google_compute_global_forwarding_rule.http | local.http_ports | each.value.port | google_compute_target_http_proxy.node[each.value.role].id
			google_compute_global_forwarding_rule.https | local.https_ports | each.value.port | google_compute_target_https_proxy.node[each.value.role].id
			google_compute_target_http_proxy.node google_compute_target_https_proxy.node | google_compute_url_map.node[each.key].id
			google_compute_url_map.node | google_compute_backend_service.node[each.key].id
			google_compute_backend_service.node | protocol = "HTTP" | port_name = "ams" | google_compute_region_instance_group_manager.node[each.key].instance_group
			google_compute_region_instance_group_manager.node | name = "ams" | port = 5080
			google_compute_forwarding_rule.rtmp | ports = ["1935"] | google_compute_region_backend_service.rtmp.id
			google_compute_region_backend_service.rtmp | protocol = "TCP" | google_compute_region_instance_group_manager.node["origin"].instance_group`,
		ros: `
			all ^ListenerProtocol: (\w+)\nListenerPort: (\d+)(?:\n.+){0,4}?\n.*ServerGroupId: \{Ref: (\w+)
				=> HTTP 80 OriginTargets; HTTP 5080 EdgeTargets; HTTPS 443 OriginTargets; HTTPS 5443 EdgeTargets; TCP 1935 RtmpTargets
			Origins | {Type: ALB, ServerGroupId: {Ref: OriginTargets}, Port: 5080 | {Type: NLB, ServerGroupId: {Ref: RtmpTargets}, Port: 1935
			Edges | {Type: ALB, ServerGroupId: {Ref: EdgeTargets}, Port: 5080
			RtmpBalancer | CrossZoneEnabled: true`,
	},
	{
		what:           "a node has a public address, at which media reaches it",
		cloudformation: `{Role}Template | AssociatePublicIpAddress: true`,
		terraform:      `aws_launch_template.node | associate_public_ip_address = true`,
		azure:          `{role}Set | publicIPAddressConfiguration: {`,
		gcp:            `google_compute_instance_template.node | access_config {}`,
		ros:            `{Role}Configuration | InternetMaxBandwidthOut: 100`,
	},
	{
		what: "TLS has the operator's certificate and no version before 1.2; without a certificate there is no listener for it",
		cloudformation: `
			Conditions.HasCertificate | !Not [!Equals [!Ref Certificate, '']]
			HttpsListener EdgeHttpsListener | Condition: HasCertificate | SslPolicy: ELBSecurityPolicy-TLS13-1-2-2021-06 | CertificateArn: !Ref Certificate`,
		terraform: `
			locals | var.certificate == "" ? {} : {
			aws_lb_listener.cluster | "ELBSecurityPolicy-TLS13-1-2-2021-06" | certificate_arn = each.value.protocol == "HTTPS" ? var.certificate : null`,
		// No other line has the certificate or its password, so no output has.
		azure: `
			all ^([^@\n].*\bcertificate(?:Password)?\b(?:[^'].*)?)$|^@(secure)
				=> secure; param certificate string = ''; secure; param certificatePassword string = ''; var withTls = !empty(certificate);
				sslCertificates: withTls ? [{ name: 'media', properties: { data: certificate, password: certificatePassword } }] : []
			gateway | policyName: 'AppGwSslPolicy20220101' | httpListeners: | ], withTls ? [ | 'Https' | sslCertificate: { id: '${gatewayId}/sslCertificates/media' } | 'Https' | sslCertificates/media' } | ] : [])
				| requestRoutingRules: | ], withTls ? [ | httpListeners/https' | httpListeners/edge-https' | ] : [])`,
		gcp: `
			locals | https_ports = var.certificate == "" ? {} : {
			google_compute_target_https_proxy.node | var.certificate == "" ? {} : var.roles | ssl_certificates = [var.certificate]`,
		ros: `
			Conditions.HasCertificate | {'Fn::Not': {'Fn::Equals': [{Ref: Certificate}, '']}}
			HttpsListener EdgeHttpsListener | Condition: HasCertificate | SecurityPolicyId: tls_cipher_policy_1_2_strict_with_1_3 | CertificateId: {Ref: Certificate}`,
	},
	{
		what: "each machine and balancer is in the group, network or account for which ports are opened",
		cloudformation: `
			Balancer | SecurityGroups: [!Ref BalancerGroup]
			RtmpBalancer | SecurityGroups: [!Ref RtmpGroup]
			OriginTemplate | Groups: [!Ref NodeGroup, !Ref OriginGroup]
			EdgeTemplate | Groups: [!Ref NodeGroup]
			Mongo | GroupSet: [!Ref MongoGroup]`,
		terraform: `
			aws_lb.cluster | security_groups = [aws_security_group.balancer.id]
			aws_lb.rtmp | security_groups = [aws_security_group.rtmp.id]
			aws_launch_template.node | each.key == "origin" ? [aws_security_group.node.id, aws_security_group.origin.id] : [aws_security_group.node.id]
			aws_instance.mongo | vpc_security_group_ids = [aws_security_group.mongo.id]`,
		azure: `
			nobodyElse | priority: 4096 | direction: 'Inbound' | access: 'Deny' | protocol: '*' | sourceAddressPrefix: '*' | destinationPortRanges: ['0-65535']
			all ^(nobodyElse|securityRules: .*nobodyElse.*)$ => nobodyElse; nobodyElse; securityRules: concat(nodeRules, [nobodyElse]); nobodyElse
			originGroup | securityRules: concat(nodeRules, [
			all ^name: '(\w+)'\nproperties: \{ ?\n?addressPrefix: '(\S+)',?\s+networkSecurityGroup: \{ id: (\w+)
				=> gateway 10.42.0.0/24 gatewayGroup; mongo 10.42.1.0/24 mongoGroup; origin 10.42.4.0/22 originGroup; edge 10.42.8.0/22 edgeGroup
			{role}Set | subnet: { id: '${network.id}/subnets/{role}' }
			mongoInterface | subnet: { id: '${network.id}/subnets/mongo' }`,
		gcp: `
			locals | balancers = ["130.211.0.0/22", "35.191.0.0/16"] | checks = ["130.211.0.0/22", "35.191.0.0/16", "209.85.152.0/22", "209.85.204.0/22"]
			google_compute_instance.mongo | email = google_service_account.mongo.email
			google_compute_instance_template.node | email = google_service_account.node[each.key].email`,
		ros: `
			all (\w+)Switch[AB]?:\nType: ALIYUN::ECS::VSwitch\n.*CidrBlock: (.+)\}
				=> Balancer 10.42.0.0/24; Balancer 10.42.1.0/24; Mongo 10.42.2.0/24; Origin 10.42.16.0/21; Origin 10.42.24.0/21; Edge 10.42.32.0/21; Edge 10.42.40.0/21
			BalancerGroup {Role}Group MongoGroup | SecurityGroupType: enterprise | {IpProtocol: all, PortRange: -1/-1, SourceCidrIp: 0.0.0.0/0, Priority: 100, Policy: drop
			Balancer | SecurityGroupIds: [{Ref: BalancerGroup}]
			Balancer RtmpBalancer | VSwitchId: {Ref: BalancerSwitchA} | VSwitchId: {Ref: BalancerSwitchB}
			{Role}s | VSwitchIds: [{Ref: {Role}SwitchA}, {Ref: {Role}SwitchB}]
			{Role}Configuration | SecurityGroupId: {Ref: {Role}Group}
			RtmpTargets | PreserveClientIpEnabled: true
			Mongo | VSwitchId: {Ref: MongoSwitch} | SecurityGroupId: {Ref: MongoGroup}`,
	},
	{
		what: "no shell is open unless the operator asks for Systems Manager, none by a password; Google Cloud boots signed systems only",
		cloudformation: `
			Parameters.SessionManager | Default: 'no'
			Conditions.HasSessionManager | !Equals [!Ref SessionManager, 'yes']
			all (.*)!Sub '.*:iam::aws:policy/(\w+)
				=> - !If [HasSessionManager, AmazonSSMManagedInstanceCore; - !If [HasSessionManager, AmazonSSMManagedInstanceCore; - !If [HasSessionManager, AmazonSSMManagedInstanceCore`,
		terraform: `
			variable.session_manager | default = false
			aws_iam_role_policy_attachment.session_manager | for_each = var.session_manager ? { | } : {} | :iam::aws:policy/AmazonSSMManagedInstanceCore`,
		azure: `mongo {role}Set | disablePasswordAuthentication: true`,
		gcp:   `google_compute_instance.mongo google_compute_instance_template.node | enable_secure_boot = true`,
	},
	{
		what: "metadata needs a token, and has the role that the agent reads",
		cloudformation: `
			{Role}Template Mongo | HttpTokens: required, HttpEndpoint: enabled, HttpPutResponseHopLimit: 1
			{Role}Template | InstanceMetadataTags: enabled | ResourceType: instance | {Key: 'amsagent:role', Value: {role}}`,
		terraform: `
			aws_launch_template.node aws_instance.mongo | http_endpoint = "enabled" | http_tokens = "required" | http_put_response_hop_limit = 1
			aws_launch_template.node | instance_metadata_tags = "enabled" | resource_type = "instance" | "amsagent:role" = each.key`,
		azure: `{role}Set | tags: { 'amsagent-role': '{role}' }`,
		gcp:   `google_compute_instance_template.node | amsagent-role = each.key`,
		ros: `
			Mongo | HttpEndpoint: enabled | HttpTokens: required
			{Role}Configuration | {Key: amsagent-role, Value: {role}}`,
	},
	{
		// Azure and Google Cloud encrypt every disk.
		what: "MongoDB's disk outlives its machine and the cluster and can come from a snapshot; disks are encrypted",
		cloudformation: `
			MongoDisk | DeletionPolicy: Snapshot | UpdateReplacePolicy: Snapshot | Encrypted: true | SnapshotId: !If [HasSnapshot, !Ref MongoSnapshot, !Ref AWS::NoValue]
			Conditions.HasSnapshot | !Not [!Equals [!Ref MongoSnapshot, '']]
			{Role}Template Mongo | Ebs: | Encrypted: true`,
		terraform: `
			aws_ebs_volume.mongo | encrypted = true | snapshot_id = var.mongo_snapshot == "" ? null : var.mongo_snapshot | final_snapshot = true
			aws_launch_template.node aws_instance.mongo | encrypted = true`,
		azure: `
			mongoDisk | empty(mongoSnapshot) ? { createOption: 'Empty' } : { createOption: 'Copy', sourceResourceId: mongoSnapshot } | networkAccessPolicy: 'DenyAll'
			mongo | diskControllerType: 'SCSI' | lun: 0, createOption: 'Attach', managedDisk: { id: mongoDisk.id }, deleteOption: 'Detach'`,
		gcp: `
			google_compute_disk.mongo | snapshot = var.mongo_snapshot == "" ? null : var.mongo_snapshot | create_snapshot_before_destroy = true
			google_compute_instance.mongo | source = google_compute_disk.mongo.id | device_name = "mongo"`,
		ros: `
			MongoDisk | DeletionPolicy: Retain | Encrypted: true | SnapshotId: {'Fn::If': [HasSnapshot, {Ref: MongoSnapshot}, {Ref: 'ALIYUN::NoValue'}]}
			Conditions.HasSnapshot | {'Fn::Not': {'Fn::Equals': [{Ref: MongoSnapshot}, '']}}
			MongoAttachment | DeleteWithInstance: false
			{Role}Configuration | SystemDiskEncrypted: true`,
	},
	{
		// The rights themselves: TestAWSPolicy, TestROSPolicy.
		what: "the template has no secret; only the machines of a role have its rights",
		cloudformation: `
			all (\w*Secret(?:String|Binary)): =>
			all ^Type: AWS::(IAM::.+) => IAM::Role; IAM::InstanceProfile; IAM::Role; IAM::Role; IAM::InstanceProfile; IAM::InstanceProfile
			MongoRole {Role}Role | Principal: {Service: !Sub 'ec2.${AWS::URLSuffix}'}, Action: sts:AssumeRole
			{Role}Profile | Roles: [!Ref {Role}Role]
			{Role}Template | IamInstanceProfile: {Arn: !GetAtt {Role}Profile.Arn}
			{Role}s | AutoScalingGroupName: !Sub '${AWS::StackName}-{role}'`,
		terraform: `
			all ^resource "aws_(iam\w+|secret\w+)" "(\w+)"|^(secret_string.*)
				=> secretsmanager_secret mongo; iam_role mongo; iam_role_policy mongo; iam_instance_profile mongo;
				iam_role node; iam_role_policy node; iam_instance_profile node; iam_role_policy_attachment session_manager
			data.aws_iam_policy_document.ec2 | actions = ["sts:AssumeRole"] | identifiers = ["ec2.${data.aws_partition.here.dns_suffix}"]
			aws_iam_role_policy.mongo | role = aws_iam_role.mongo.id | policy = data.aws_iam_policy_document.mongo.json
			aws_iam_role_policy.node | role = aws_iam_role.node[each.key].id | policy = data.aws_iam_policy_document.node[each.key].json
			aws_iam_instance_profile.node | role = aws_iam_role.node[each.key].name
			aws_launch_template.node | arn = aws_iam_instance_profile.node[each.key].arn
			aws_autoscaling_group.node | name = "${var.name}-${each.key}"`,
		azure: `
			all ^objectId: (\w+)\.properties\.principalId\npermissions: (.+) => originIdentity { secrets: ['get'] }; edgeIdentity { secrets: ['get'] }; mongoIdentity { secrets: ['set'] }
			all ^(permissions): |(Microsoft\.(?:Authorization|KeyVault)[\w/]*)@ => Microsoft.KeyVault/vaults; permissions; permissions; permissions
			vault | enableRbacAuthorization: false | defaultAction: 'Deny' | bypass: 'None'
			all ^\{ id: '\$\{network\.id\}/subnets/(.+)' \}|^(ipRules.*) => mongo; origin; edge
			{role}Set | userAssignedIdentities: { '${{role}Identity.id}': {} } | '{{identity}}', {role}Identity.properties.clientId`,
		gcp: `
			all ^resource "google_\w*(_iam_|secret)\w*" "(\w+)"|^role = "roles/(.+)"|^member = "serviceAccount:(.+)"
				=> secret mongo; _iam_ mongo; secretmanager.secretVersionAdder; ${google_service_account.mongo.email};
				_iam_ node; secretmanager.secretAccessor; ${google_service_account.node[each.key].email}`,
		ros: `
			all SecretData: (.+) => none yet
			all ^Type: ALIYUN::(RAM::.+)|Principal: \{Service: \[(.+?)\]
				=> RAM::Role; ecs.aliyuncs.com; RAM::ManagedPolicy; RAM::Role; ecs.aliyuncs.com; RAM::ManagedPolicy; RAM::Role; oos.aliyuncs.com
			{Role}Configuration | RamRoleName: {Ref: NodeRole}
			Mongo | RamRoleName: {Ref: MongoRole}
			MongoSecret | SecretName: {'Fn::Sub': '${Name}-mongo'} | DKMSInstanceId: {'Fn::If': [HasKms, {Ref: KmsInstance} | EncryptionKeyId: {'Fn::If': [HasKms, {Ref: KmsKey}
			NodeKey | Condition: HasKms | Roles: [{Ref: NodeRole}] | Action: ['kms:Decrypt'], Resource: ['Fn::Sub': 'acs:kms:${ALIYUN::Region}:${ALIYUN::TenantId}:key/${KmsKey}']
			MongoKey | Condition: HasKms | Roles: [{Ref: MongoRole}] | Action: ['kms:GenerateDataKey'], Resource: ['Fn::Sub': 'acs:kms:${ALIYUN::Region}:${ALIYUN::TenantId}:key/${KmsKey}']`,
	},
	{
		what: "nodes start after MongoDB; its next machine has its address",
		cloudformation: `
			{Role}s | DependsOn: [MongoReady, DefaultRoute, SubnetARoutes, SubnetBRoutes]
			MongoReady | DependsOn: MongoAttachment | Handle: !Ref MongoReadyHandle
			Mongo | trap 'word FAILURE | EXIT | set -e | aws secretsmanager put-secret-value | trap - EXIT | word SUCCESS`,
		terraform: `aws_autoscaling_group.node | depends_on = [ | aws_volume_attachment.mongo, aws_iam_role_policy.node, aws_route_table_association.cluster`,
		azure: `
			originSet | dependsOn: [gateway, rtmp, vault, mongo]
			edgeSet | dependsOn: [gateway, vault, mongo]
			mongoInterface | privateIPAllocationMethod: 'Static' | privateIPAddress: mongoIp`,
		gcp: `
			google_compute_region_instance_group_manager.node | depends_on = [google_compute_instance.mongo, google_secret_manager_secret_iam_member.node]
			google_compute_instance.mongo | network_ip = google_compute_address.mongo.address`,
		ros: `
			MongoReady | DependsOn: MongoAttachment | Handle: {Ref: MongoReadyHandle}
			OriginEnable | DependsOn: [MongoReady | HttpListener, RtmpListener]
			EdgeEnable | DependsOn: [MongoReady | EdgeHttpListener]
			Mongo | PrivateIpAddress: 10.42.2.10`,
	},
	{
		what: "each role has one to ten nodes by default, and scales out and in at 60 % CPU",
		cloudformation: `
			Parameters.{Role}Min | Default: 1
			Parameters.{Role}Max | Default: 10
			{Role}s | MinSize: !Ref {Role}Min | MaxSize: !Ref {Role}Max
			{Role}Scaling | !Ref {Role}s | ASGAverageCPUUtilization | TargetValue: 60 | DisableScaleIn: false`,
		terraform: `
			variable.roles | origin = { | min = 1, max = 10 } | edge = { | min = 1, max = 10 }
			aws_autoscaling_group.node | for_each = var.roles | min_size = each.value.min | max_size = each.value.max
			aws_autoscaling_policy.cpu | aws_autoscaling_group.node[each.key].name | "ASGAverageCPUUtilization" | target_value = 60 | disable_scale_in = false`,
		azure: `
			{role}Min | int = 1
			{role}Max | int = 10
			{role}Count | int = {role}Min
			{role}Set | capacity: {role}Count
			{role}Scaling | enabled: true | targetResourceUri: {role}Set.id | minimum: string({role}Min), maximum: string({role}Max), default: string({role}Min)
			{role}Scaling | 'Percentage CPU' | {role}Set.id | 'GreaterThan' | threshold: 60 | 'Increase' | 'Percentage CPU' | {role}Set.id | 'LessThan' | threshold: 60 | 'Decrease'`,
		gcp: `
			variable.roles | origin = { | min = 1, max = 10 } | edge = { | min = 1, max = 10 }
			google_compute_region_autoscaler.node | google_compute_region_instance_group_manager.node[each.key].id | each.value.min | each.value.max | mode = "ON" | target = 0.6`,
		ros: `
			Parameters.{Role}Min | Default: 1
			Parameters.{Role}Max | Default: 10
			{Role}s | MinSize: {Ref: {Role}Min} | MaxSize: {Ref: {Role}Max}
			{Role}Scaling | {Ref: {Role}s} | TargetTrackingScalingRule | CpuUtilization | TargetValue: 60 | DisableScaleIn: false`,
	},
}

// opened are the connections that each template lets in: to, protocol, ports, from. All others are closed, SSH too.
var opened = []struct{ rule, templates string }{
	{"origin,edge udp 50000-60000 viewer", "cloudformation terraform azure gcp ros"},
	{"origin,edge tcp 5080,9771 balancer", "cloudformation terraform azure gcp ros"},
	{"origin,edge tcp 5000,5080 origin,edge", "cloudformation terraform azure gcp ros"},
	{"mongo tcp 27017 origin,edge", "cloudformation terraform azure gcp ros"},
	// A balancer of Google Cloud has no firewall.
	{"balancer tcp 80,443,5080,5443 viewer", "cloudformation terraform azure ros"},
	{"rtmp tcp 1935 publisher", "cloudformation terraform"},
	{"origin tcp 1935,9771 rtmp", "cloudformation terraform"},
	// The balancer for RTMP forwards packets with the publisher's address; its health checks have others.
	{"origin tcp 1935 publisher", "azure gcp ros"},
	{"origin tcp 9771 rtmp", "gcp"},
	{"origin tcp 9771 azureloadbalancer", "azure"},
	// A gateway of Azure does not start without these two.
	{"balancer tcp 65200-65535 gatewaymanager", "azure"},
	{"balancer * 0-65535 azureloadbalancer", "azure"},
}

// openings have for each template the pattern of a rule that opens ports, and another one that each rule has, also one that cannot be
// read. The groups of the first are to (or else the name of the block), protocol, ports and from; without from the rule closes ports.
var openings = map[string][2]string{
	"cloudformation": {
		`(?:GroupId: !Ref (?P<to>\w+), )?IpProtocol: (?P<protocol>\w+), FromPort: (?P<ports>\d+, ToPort: \d+), (?:CidrIp|SourceSecurityGroupId): !Ref (?P<from>\w+),`,
		`IpProtocol`,
	},
	"terraform": {
		`security_group_id = aws_security_group\.(?P<to>\w+)\.id\n.+\nip_protocol = "(?P<protocol>\w+)"\nfrom_port = (?P<ports>\S+\nto_port = \S+)\n\w+ = (?P<from>.+)\n\}`,
		`^resource "aws_(?:vpc_security_group_ingress|security_group_rule|network_acl)|^ingress`,
	},
	"azure": {
		`access: 'Allow'\nprotocol: (?P<protocol>.+)\nsource\w+: (?P<from>.+)\nsourcePortRange: '\*'\ndestinationAddressPrefix: '\*'\ndestinationPortRanges: (?P<ports>.+)`,
		`access: 'Allow'`,
	},
	"gcp": {
		`source_\w+ = (?P<from>.+)\ntarget_service_accounts = (?P<to>.+)\nallow \{\nprotocol = (?P<protocol>.+)\nports = (?P<ports>.+)\n\}`,
		`^allow|google_compute_\w*firewall_`,
	},
	"ros": {
		`^- \{IpProtocol: (?P<protocol>\w+), PortRange: (?P<ports>\S+), SourceCidrIp: (?:(?P<from>.+), Priority: 10, Policy: accept|0.0.0.0/0, Priority: 100, Policy: drop)`,
		`^[^E\n]*IpProtocol`, // not SecurityGroupEgress
	},
}

// plain replaces the names that templates have for roles and ports, in small letters, by those of opened.
var plain = strings.NewReplacer(
	"gatewaymanager", "gatewaymanager", "gateway", "balancer", "local.balancers", "balancer", "local.checks", "rtmp", "node[", "", "node", "origin,edge", "rules", "",
	"10.42.0.0/24", "balancer", "10.42.4.0/22", "origin", "10.42.8.0/22", "edge", "10.42.0.0/23", "balancer", "10.42.16.0/20", "origin", "10.42.32.0/20", "edge",
	"google_service_account.", "", ".email", "", "aws_security_group.", "", ".id", "", "group", "", "var.", "", "{ref: ", "", "}", "", "_cidr", "", "cidr", "", "source", "",
	"each.value.port\nto_port = each.value.port", "80,443,5080,5443", "\nto_port = ", "-", ", toport: ", "-", "/", "-", ", ", ",", "[", "", "]", "", "'", "", `"`, "",
)

// connections is a rule as one for each role and port.
func connections(rule string) (out []string) {
	f := strings.Fields(rule)
	for _, to := range strings.Split(f[0], ",") {
		for _, port := range strings.Split(f[2], ",") {
			if first, last, _ := strings.Cut(port, "-"); first == last {
				port = first
			}
			for _, from := range strings.Split(f[3], ",") {
				out = append(out, fmt.Sprintf("%s %s %s from %s", to, f[1], port, from))
			}
		}
	}
	return out
}

// opens returns each connection that the template lets in.
func (s source) opens(t *testing.T, template string) (out []string) {
	t.Helper()
	rule, rules := regexp.MustCompile("(?m)"+openings[template][0]), 0
	for name, block := range s.blocks {
		for _, m := range rule.FindAllStringSubmatch(block, -1) {
			rules++
			f := map[string]string{"to": name}
			for i, group := range rule.SubexpNames() {
				if m[i] != "" {
					f[group] = m[i]
				}
			}
			if f["from"] != "" {
				out = append(out, connections(plain.Replace(strings.ToLower(f["to"]+" "+f["protocol"]+" "+f["ports"]+" "+f["from"])))...)
			}
		}
	}
	if all := len(s.finds(openings[template][1])); rules != all {
		t.Errorf("%d of %d rules can be read", rules, all)
	}
	return sorted(out)
}

// meets checks one column of the table.
func (s source) meets(t *testing.T, template string) {
	t.Helper()
	for _, r := range requirements {
		cells := map[string]string{"cloudformation": r.cloudformation, "terraform": r.terraform, "azure": r.azure, "gcp": r.gcp, "ros": r.ros}
		for _, lack := range s.lacks(cells[template]) {
			t.Errorf("%s: %s", r.what, lack)
		}
	}
	var want []string
	for _, o := range opened {
		if slices.Contains(strings.Fields(o.templates), template) {
			want = append(want, connections(o.rule)...)
		}
	}
	must.NoDiff(t, "opened ports", s.opens(t, template), sorted(want))
}
