// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/cloud"
)

const alibabaROS = "../../packaging/cloud/alibaba/ros.yaml"

// rosFacts: who is on a node that leaves, or is not ready, stays on it; a group begins when its hooks, its balancer and MongoDB are
// there; and an execution of OOS does not fail where one machine does not answer.
var rosFacts = facts{
	says: map[string]string{
		"Parameters.HookSeconds":                    `Default: 600`,
		"Parameters.LaunchSeconds":                  `Default: 900`,
		"Parameters.Oos":                            `Default: 'yes'`,
		"Parameters.OriginMin Parameters.EdgeMin":   `Default: 1`,
		"Parameters.OriginMax Parameters.EdgeMax":   `Default: 10`,
		"Parameters.OriginType Parameters.EdgeType": `Default: ecs.c7.xlarge`,
		"Balancer": `
			LoadBalancerEdition: Standard
			AddressType: Internet
			ZoneMappings: [{ZoneId: {Ref: ZoneA}, VSwitchId: {Ref: BalancerSwitchA}}, {ZoneId: {Ref: ZoneB}, VSwitchId: {Ref: BalancerSwitchB}}]
			SecurityGroupIds: [{Ref: BalancerGroup}]`,
		"RtmpBalancer": `
			AddressType: Internet
			ZoneMappings: [{ZoneId: {Ref: ZoneA}, VSwitchId: {Ref: BalancerSwitchA}}, {ZoneId: {Ref: ZoneB}, VSwitchId: {Ref: BalancerSwitchB}}]
			CrossZoneEnabled: true`,
		"OriginTargets EdgeTargets": `
			ServerGroupType: Instance
			Protocol: HTTP
			HealthCheckEnabled: true
			HealthCheckProtocol: HTTP
			HealthCheckMethod: GET
			HealthCheckConnectPort: 9771
			HealthCheckPath: /readyz
			HealthCheckCodes: [http_2xx]
			HealthCheckInterval: 10
			HealthyThreshold: 2
			UnhealthyThreshold: 2
			StickySessionConfig: {StickySessionEnabled: true, StickySessionType: Insert, CookieTimeout: 86400}
			ConnectionDrainConfig: {ConnectionDrainEnabled: false}`,
		"RtmpTargets": `
			ServerGroupType: Instance
			Protocol: TCP
			PreserveClientIpEnabled: true
			HealthCheckEnabled: true
			HealthCheckType: HTTP
			HealthCheckConnectPort: 9771
			HealthCheckUrl: /readyz
			HealthCheckInterval: 10
			HealthyThreshold: 2
			UnhealthyThreshold: 2
			ConnectionDrainEnabled: false`,
		"HttpListener EdgeHttpListener": `IdleTimeout: 600`,
		"HttpsListener EdgeHttpsListener": `
			Condition: HasCertificate
			SecurityPolicyId: tls_cipher_policy_1_2_strict_with_1_3
			Certificates: [{CertificateId: {Ref: Certificate}}]
			IdleTimeout: 600`,
		"MongoSecret": `
			SecretName: {'Fn::Sub': '${Name}-mongo'}
			SecretData: none yet
			DKMSInstanceId: {'Fn::If': [HasKms, {Ref: KmsInstance}, {Ref: 'ALIYUN::NoValue'}]}
			EncryptionKeyId: {'Fn::If': [HasKms, {Ref: KmsKey}, {Ref: 'ALIYUN::NoValue'}]}`,
		"NodeKey": `
			Condition: HasKms
			Roles: [{Ref: NodeRole}]
			Statement: [{Effect: Allow, Action: ['kms:Decrypt'], Resource: ['Fn::Sub': 'acs:kms:${ALIYUN::Region}:${ALIYUN::TenantId}:key/${KmsKey}']}]`,
		"MongoKey": `
			Condition: HasKms
			Roles: [{Ref: MongoRole}]
			Statement: [{Effect: Allow, Action: ['kms:GenerateDataKey'], Resource: ['Fn::Sub': 'acs:kms:${ALIYUN::Region}:${ALIYUN::TenantId}:key/${KmsKey}']}]`,
		"MongoDisk": `
			DeletionPolicy: Retain
			ZoneId: {Ref: ZoneA}
			DiskCategory: cloud_essd
			Encrypted: true
			SnapshotId: {'Fn::If': [HasSnapshot, {Ref: MongoSnapshot}, {Ref: 'ALIYUN::NoValue'}]}`,
		"MongoAttachment": `
			DiskId: {Ref: MongoDisk}
			InstanceId: {Ref: Mongo}
			DeleteWithInstance: false`,
		"Mongo": `
			ZoneId: {Ref: ZoneA}
			VSwitchId: {Ref: MongoSwitch}
			PrivateIpAddress: 10.42.2.10
			SecurityGroupId: {Ref: MongoGroup}
			ImageId: {Ref: MongoImage}
			RamRoleName: {Ref: MongoRole}
			HttpEndpoint: enabled
			HttpTokens: required`,
		"MongoReady": `
			DependsOn: MongoAttachment
			Handle: {Ref: MongoReadyHandle}`,
		"Origins": `
			- {Type: ALB, ServerGroupId: {Ref: OriginTargets}, Port: 5080, Weight: 100}
			- {Type: NLB, ServerGroupId: {Ref: RtmpTargets}, Port: 1935, Weight: 100}`,
		"Edges": `- {Type: ALB, ServerGroupId: {Ref: EdgeTargets}, Port: 5080, Weight: 100}`,
		"Origins Edges": `
			ScalingGroupName: {'Fn::Sub': '${Name}-{role}'}
			MinSize: {Ref: {Role}Min}
			MaxSize: {Ref: {Role}Max}
			VSwitchIds: [{Ref: {Role}SwitchA}, {Ref: {Role}SwitchB}]
			HealthCheckType: ECS`,
		"OriginConfiguration EdgeConfiguration": `
			ScalingGroupId: {Ref: {Role}s}
			ImageId: {Ref: NodeImage}
			InstanceTypes: [{Ref: {Role}Type}]
			SpotStrategy: NoSpot
			SystemDiskEncrypted: true
			SecurityGroupId: {Ref: {Role}Group}
			InternetMaxBandwidthOut: 100
			RamRoleName: {Ref: NodeRole}
			TagList: [{Key: amsagent-role, Value: {role}}, {Key: Name, Value: {'Fn::Sub': '${Name}-{role}'}}]`,
		"OriginLaunch EdgeLaunch": `
			ScalingGroupId: {Ref: {Role}s}
			LifecycleTransition: SCALE_OUT
			HeartbeatTimeout: {Ref: LaunchSeconds}
			DefaultResult: ABANDON`,
		"OriginTerminate EdgeTerminate": `
			ScalingGroupId: {Ref: {Role}s}
			LifecycleTransition: SCALE_IN
			HeartbeatTimeout: {Ref: HookSeconds}
			DefaultResult: CONTINUE
			NotificationArn: {'Fn::If': [HasOos, {'Fn::Sub': 'acs:ess:${ALIYUN::Region}:${ALIYUN::TenantId}:oos/${OosTemplate}'}, {Ref: 'ALIYUN::NoValue'}]}
			NotificationMetadata: {'Fn::If': [HasOos, {'Fn::Sub': '{"OOSAssumeRole":"${OosRole}"}'}, {Ref: 'ALIYUN::NoValue'}]}`,
		// Auto Scaling puts values where the defaults are exactly these.
		"OosTemplate": `
			Condition: HasOos
			FormatVersion: OOS-2019-06-01
			regionId: {Type: String, Default: '${regionId}'}
			instanceIds: {Type: List, Default: ['${instanceIds}']}
			lifecycleHookId: {Type: String, Default: '${lifecycleHookId}'}
			lifecycleActionToken: {Type: String, Default: '${lifecycleActionToken}'}
			lifecycleActionResult: {Type: String, Default: CONTINUE}
			OOSAssumeRole: {Type: String, Default: OOSServiceRole}
			RamRole: '{{ OOSAssumeRole }}'
			Action: ACS::ECS::RunCommand
			OnError: ACS::END
			regionId: '{{ regionId }}'
			instanceId: '{{ ACS::TaskLoopItem }}'
			commandType: RunShellScript
			Items: '{{ instanceIds }}'
			RateControl: {Mode: Concurrency, Concurrency: 10, MaxErrors: 100%}`,
		"OosRole": `
			Condition: HasOos
			Statement: [{Effect: Allow, Action: sts:AssumeRole, Principal: {Service: [oos.aliyuncs.com]}}]`,
		"NodeRole MongoRole": `Statement: [{Effect: Allow, Action: sts:AssumeRole, Principal: {Service: [ecs.aliyuncs.com]}}]`,
		"OriginScaling EdgeScaling": `
			ScalingGroupId: {Ref: {Role}s}
			ScalingRuleType: TargetTrackingScalingRule
			MetricName: CpuUtilization
			TargetValue: 60
			DisableScaleIn: false`,
		"OriginEnable EdgeEnable": `
			ScalingGroupId: {Ref: {Role}s}
			ScalingConfigurationId: {Ref: {Role}Configuration}`,
		"OriginEnable": `DependsOn: [MongoReady, OriginLaunch, OriginTerminate, OriginScaling, HttpListener, RtmpListener]`,
		"EdgeEnable":   `DependsOn: [MongoReady, EdgeLaunch, EdgeTerminate, EdgeScaling, EdgeHttpListener]`,
	},
	lists: map[string]string{
		`^ListenerProtocol: (\w+)\nListenerPort: (\d+)(?:\n.+){0,4}?\n.*ServerGroupId: \{Ref: (\w+)`: `
			HTTP 80 OriginTargets
			HTTP 5080 EdgeTargets
			HTTPS 443 OriginTargets
			HTTPS 5443 EdgeTargets
			TCP 1935 RtmpTargets`,
		`^(Has\w+: .+)`: `
			HasCertificate: {'Fn::Not': {'Fn::Equals': [{Ref: Certificate}, '']}}
			HasSnapshot: {'Fn::Not': {'Fn::Equals': [{Ref: MongoSnapshot}, '']}}
			HasKms: {'Fn::Not': {'Fn::Equals': [{Ref: KmsInstance}, '']}}
			HasOos: {'Fn::Equals': [{Ref: Oos}, 'yes']}`,
		// Where a rule has an address, it means one of these networks.
		`(\w+)Switch[AB]?:\nType: ALIYUN::ECS::VSwitch\n.*CidrBlock: (.+)\}`: `
			Balancer 10.42.0.0/24
			Balancer 10.42.1.0/24
			Mongo 10.42.2.0/24
			Origin 10.42.16.0/21
			Origin 10.42.24.0/21
			Edge 10.42.32.0/21
			Edge 10.42.40.0/21`,
		`^(\w+Group):$|^SecurityGroupType: (.+)|^- \{IpProtocol: (.+), PortRange: (.+), SourceCidrIp: (.+), Priority: (.+), Policy: (\w+)`: `
			BalancerGroup
			enterprise
			tcp 80/80 {Ref: ViewerCidr} 10 accept
			tcp 443/443 {Ref: ViewerCidr} 10 accept
			tcp 5080/5080 {Ref: ViewerCidr} 10 accept
			tcp 5443/5443 {Ref: ViewerCidr} 10 accept
			all -1/-1 0.0.0.0/0 100 drop
			OriginGroup
			enterprise
			udp 50000/60000 {Ref: ViewerCidr} 10 accept
			tcp 5080/5080 10.42.0.0/23 10 accept
			tcp 9771/9771 10.42.0.0/23 10 accept
			tcp 1935/1935 {Ref: PublisherCidr} 10 accept
			tcp 5000/5000 10.42.16.0/20 10 accept
			tcp 5000/5000 10.42.32.0/20 10 accept
			tcp 5080/5080 10.42.16.0/20 10 accept
			tcp 5080/5080 10.42.32.0/20 10 accept
			all -1/-1 0.0.0.0/0 100 drop
			EdgeGroup
			enterprise
			udp 50000/60000 {Ref: ViewerCidr} 10 accept
			tcp 5080/5080 10.42.0.0/23 10 accept
			tcp 9771/9771 10.42.0.0/23 10 accept
			tcp 5000/5000 10.42.16.0/20 10 accept
			tcp 5000/5000 10.42.32.0/20 10 accept
			tcp 5080/5080 10.42.16.0/20 10 accept
			tcp 5080/5080 10.42.32.0/20 10 accept
			all -1/-1 0.0.0.0/0 100 drop
			MongoGroup
			enterprise
			tcp 27017/27017 10.42.16.0/20 10 accept
			tcp 27017/27017 10.42.32.0/20 10 accept
			all -1/-1 0.0.0.0/0 100 drop`,
		`(IpProtocol)|Type: ALIYUN::(RAM::.+)`: strings.Repeat("IpProtocol\n", 29) + `
			RAM::Role
			RAM::ManagedPolicy
			RAM::Role
			RAM::ManagedPolicy
			RAM::Role`,
	},
}

func loadROS(t *testing.T) *stack {
	t.Helper()
	return loadStack(t, alibabaROS, map[string]any{
		"ALIYUN::Region": "REGION", "ALIYUN::TenantId": "ACCOUNT", "MongoDisk": "d-bp1disk",
		"MongoReadyHandle.CurlCli": `curl -i -X POST -H 'Content-Type: application/json' 'https://HANDLE/?a=b&c=d'`,
	})
}

// rosUserData is that of a node ("edge") or of MongoDB's machine ("mongo").
func rosUserData(t *testing.T, role string) string {
	t.Helper()
	c := loadROS(t)
	return fmt.Sprint(c.of(map[string]string{"mongo": "Mongo", "origin": "OriginConfiguration", "edge": "EdgeConfiguration"}[role])["UserData"])
}

func TestROS(t *testing.T) {
	c := loadROS(t)
	c.check(t, rosFacts)
	c.references()
}

// TestROSPolicy: what the template permits is what the agent itself says that it needs, and the secret.
func TestROSPolicy(t *testing.T) {
	const secret = "acs:kms:REGION:ACCOUNT:secret/ams-mongo"
	want := map[string][]string{
		"NodeRole": {"Allow kms:GetSecretValue on " + secret}, "MongoRole": {"Allow kms:PutSecretValue on " + secret},
		"OosRole": {"Allow ecs:DescribeInvocationResults ecs:DescribeInvocations ecs:RunCommand on *"},
	}
	// The page for those who make the role by hand says the same.
	page := contents(t, "../../docs/clouds/alibaba.md")
	for _, s := range ownPolicy(t, alibaba.Policy) {
		want["NodeRole"] = append(want["NodeRole"], "Allow "+strings.Join(sorted(s.Action), " ")+" on "+s.Resource)
		for _, action := range s.Action {
			if !strings.Contains(page, `"`+action+`"`) {
				t.Errorf("docs/clouds/alibaba.md does not permit %s", action)
			}
		}
	}
	for role, want := range want {
		if diff := gocmp.Diff(sorted(want), loadROS(t).statements(role)); diff != "" {
			t.Errorf("%s (-agent +template):\n%s", role, diff)
		}
	}
}

// TestROSHookTellsAgent: what the hook makes Cloud Assistant run is an event that the agent understands, about all machines of
// the token, and it never fails: Auto Scaling would cut who is there.
func TestROSHookTellsAgent(t *testing.T) {
	machines := []string{"i-bp1aaaaaaaaaaaaaaaa1", "i-bp1aaaaaaaaaaaaaaaa2"}
	c := loadROS(t)
	var content yaml.Node
	must.OK(t, yaml.Unmarshal([]byte(fmt.Sprint(c.of("OosTemplate")["Content"])), &content))
	task := at(c.value(content.Content[0]), "Tasks").([]any)[0]
	command := filled(t, fmt.Sprint(at(task, "Properties", "commandContent")), "{{ ", " }}", map[string]string{
		"regionId": "cn-hangzhou", "instanceIds": strings.Join(machines, ","), "lifecycleHookId": "ash-1", "lifecycleActionToken": "T0K3N",
	})
	for _, agent := range []string{`cat; [ "$*" = "event --detach" ]`, `echo 'no daemon' >&2; exit 1`} {
		dir := t.TempDir()
		must.OK(t, os.WriteFile(dir+"/amsagent", []byte("#!/bin/sh\n"+agent+"\n"), 0o755))
		cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("the command fails: %v", err)
		}
		if strings.HasPrefix(agent, "echo") {
			continue
		}
		e, err := metadata.ParseEvent(out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		mine, ok := e.For(machines[0])
		if !ok || mine.Kind != cloud.Terminate || mine.Hook.Name != "ash-1" || mine.Hook.Token != "T0K3N" || !slices.Equal(mine.Hook.Others, machines[1:]) {
			t.Errorf("the agent reads %+v", mine)
		}
	}
}

// TestROSMongoMachine runs the script of MongoDB's machine: install.sh is a stand-in here, since its own tests run it; the
// program that puts the secret into KMS is the real one, and so is its signature.
func TestROSMongoMachine(t *testing.T) {
	data := rosUserData(t, "mongo")
	script, err := os.ReadFile(install)
	must.OK(t, err)
	for name, tt := range map[string]struct {
		install string
		want    string
		secret  string
	}{
		"good": {`echo "$*" >&2; umask 077; echo mongodb://amsagent:pw@10.42.2.10:27017/admin >"$HERE/uri"; echo said; echo "$HERE/uri"`, "SUCCESS", "mongodb://amsagent:pw@10.42.2.10:27017/admin"},
		"bad":  {"echo broken >&2; exit 1", "FAILURE", "none yet"},
	} {
		t.Run(name, func(t *testing.T) {
			api, meta := kms(t)
			api.SetSecret("ams-mongo", "none yet")
			dir := t.TempDir()
			for _, sub := range []string{"/sbin", "/by-id"} {
				must.OK(t, os.Mkdir(dir+sub, 0o755))
			}
			// The disk comes when it was asked for once, by the name of NVMe; a part of it and another disk are there, too.
			for file, body := range map[string]string{
				// Whoever never gets on is not waited for.
				"sleep": `: >"$HERE/by-id/nvme-Alibaba_Cloud_Elastic_Block_Storage_bp1disk"
echo "$*" >>"$HERE/slept"
[ "$(grep -c . "$HERE/slept")" -lt 4 ] || kill "$PPID"`,
				"curl": `echo "$*" >>"$HERE/said"`,
			} {
				must.OK(t, os.WriteFile(dir+"/"+file, []byte("#!/bin/sh\n"+body+"\n"), 0o755))
			}
			for _, disk := range []string{"nvme-Alibaba_Cloud_Elastic_Block_Storage_bp1disk-part1", "virtio-bp1other"} {
				must.OK(t, os.WriteFile(dir+"/by-id/"+disk, nil, 0o600))
			}
			body := strings.NewReplacer("/usr/local/sbin/", dir+"/sbin/", "/dev/disk/by-id/", dir+"/by-id/").
				Replace(strings.Replace(data, string(script), "#!/bin/sh\n"+tt.install+"\n", 1))
			cmd := exec.CommandContext(t.Context(), "sh", "-c", body)
			cmd.Env = append(append(os.Environ(), "HERE="+dir, "PATH="+dir+":"+dir+"/sbin:"+os.Getenv("PATH")), kmsEnviron(api, meta)...)
			out, err := cmd.CombinedOutput()
			if (err == nil) != (tt.want == "SUCCESS") {
				t.Errorf("%v\n%s", err, out)
			}
			said, err := os.ReadFile(dir + "/said")
			if err != nil || strings.Count(string(said), "\n") != 1 || !strings.Contains(string(said), `-d {"status":"`+tt.want+`"}`) || !strings.Contains(string(said), "https://HANDLE/?a=b&c=d") {
				t.Errorf("ROS was told %q (%v)\n%s", said, err, out)
			}
			if got := api.Secret("ams-mongo"); got != tt.secret {
				t.Errorf("the secret is %q\n%s", got, out)
			}
			if want := "--single --release 8.0 --databases live,liveapp,webrtcappee --data-device " + dir + "/by-id/nvme-Alibaba_Cloud_Elastic_Block_Storage_bp1disk\n"; tt.want == "SUCCESS" && !strings.Contains(string(out), want) {
				t.Errorf("install.sh is not called with %q:\n%s", want, out)
			}
			if strings.Contains(string(out), "pw@") {
				t.Errorf("the password is in the output: %s", out)
			}
		})
	}
}
