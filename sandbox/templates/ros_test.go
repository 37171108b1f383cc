// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/cloud"
)

const alibabaROS = "../../packaging/cloud/alibaba/ros.yaml"

// rosType is what ROS knows about a type of resource, from its reference: nothing here asks ROS itself.
type rosType struct {
	must, may  string
	attributes string
}

// rosTypes are the types that the template uses, with the properties and attributes that it could use of them.
var rosTypes = map[string]rosType{
	"ALIYUN::ALB::Listener": {
		"DefaultActions ListenerPort ListenerProtocol LoadBalancerId",
		"Certificates GzipEnabled Http2Enabled IdleTimeout ListenerDescription ListenerStatus RequestTimeout SecurityPolicyId XForwardedForConfig", "ListenerId",
	},
	"ALIYUN::ALB::LoadBalancer": {
		"AddressType LoadBalancerBillingConfig LoadBalancerEdition VpcId ZoneMappings",
		"AddressAllocatedMode AddressIpVersion DeletionProtectionEnabled LoadBalancerName SecurityGroupIds Tags", "DNSName LoadBalancerId",
	},
	"ALIYUN::ALB::ServerGroup": {
		"HealthCheckConfig ServerGroupName",
		"ConnectionDrainConfig CrossZoneEnabled Protocol Scheduler ServerGroupType SlowStartConfig StickySessionConfig Tags UpstreamKeepaliveEnabled VpcId", "ServerGroupId",
	},
	"ALIYUN::ECS::Disk":           {"", "Description DiskCategory DiskName Encrypted PerformanceLevel Size SnapshotId Tags ZoneId", "DiskId"},
	"ALIYUN::ECS::DiskAttachment": {"DiskId InstanceId", "DeleteWithInstance Device", "DiskId"},
	"ALIYUN::ECS::Instance": {
		"InstanceType",
		"AllocatePublicIP Description HostName HttpEndpoint HttpTokens ImageId InstanceChargeType InstanceName InternetChargeType InternetMaxBandwidthOut IoOptimized " +
			"PrivateIpAddress RamRoleName SecurityGroupId SystemDiskCategory SystemDiskSize Tags UserData VpcId VSwitchId ZoneId", "InstanceId PrivateIp PublicIp",
	},
	"ALIYUN::ECS::SecurityGroup": {"", "Description SecurityGroupEgress SecurityGroupIngress SecurityGroupName SecurityGroupType Tags VpcId", "SecurityGroupId"},
	"ALIYUN::ECS::VPC":           {"", "CidrBlock Description Tags VpcName", "VpcId"},
	"ALIYUN::ECS::VSwitch":       {"CidrBlock VpcId ZoneId", "Description Tags VSwitchName", "VSwitchId"},
	"ALIYUN::ESS::LifecycleHook": {
		"LifecycleTransition ScalingGroupId", "DefaultResult HeartbeatTimeout LifecycleHookName NotificationArn NotificationMetadata", "LifecycleHookId",
	},
	"ALIYUN::ESS::ScalingConfiguration": {
		"ScalingGroupId",
		"ImageId InstanceName InstanceTypes InternetChargeType InternetMaxBandwidthOut IoOptimized RamRoleName ScalingConfigurationName SecurityGroupId SpotStrategy " +
			"SystemDiskCategory SystemDiskEncrypted SystemDiskSize TagList UserData", "ScalingConfigurationId",
	},
	"ALIYUN::ESS::ScalingGroup": {
		"MaxSize MinSize", "DefaultCooldown DesiredCapacity HealthCheckType MultiAZPolicy RemovalPolicys ScalingGroupName ScalingPolicy ServerGroups Tags VSwitchIds", "ScalingGroupId",
	},
	"ALIYUN::ESS::ScalingGroupEnable": {"ScalingGroupId", "ScalingConfigurationId", ""},
	"ALIYUN::ESS::ScalingRule": {
		"ScalingGroupId", "DisableScaleIn EstimatedInstanceWarmup MetricName ScaleInEvaluationCount ScaleOutEvaluationCount ScalingRuleName ScalingRuleType TargetValue", "ScalingRuleId",
	},
	"ALIYUN::KMS::Secret": {
		"SecretData SecretName VersionId", "DKMSInstanceId Description EncryptionKeyId ForceDeleteWithoutRecovery RecoveryWindowInDays SecretDataType Tags", "Arn SecretName",
	},
	"ALIYUN::NLB::Listener": {"ListenerProtocol LoadBalancerId ServerGroupId", "IdleTimeout ListenerDescription ListenerPort", "ListenerId"},
	"ALIYUN::NLB::LoadBalancer": {
		"AddressType VpcId ZoneMappings", "AddressIpVersion CrossZoneEnabled LoadBalancerBillingConfig LoadBalancerName LoadBalancerType Tags", "DNSName LoadBalancerId",
	},
	"ALIYUN::NLB::ServerGroup": {
		"ServerGroupName VpcId", "ConnectionDrainEnabled ConnectionDrainTimeout HealthCheckConfig PreserveClientIpEnabled Protocol Scheduler ServerGroupType Tags", "ServerGroupId",
	},
	"ALIYUN::OOS::Template":            {"Content TemplateName", "ResourceGroupId Tags", "TemplateId TemplateName"},
	"ALIYUN::RAM::ManagedPolicy":       {"PolicyName", "Description PolicyDocument Roles", "PolicyName"},
	"ALIYUN::RAM::Role":                {"AssumeRolePolicyDocument RoleName", "DeletionForce Description MaxSessionDuration Policies PolicyAttachments", "Arn RoleId RoleName"},
	"ALIYUN::ROS::WaitCondition":       {"Handle Timeout", "Count ShowProgressEvent", "Data ErrorData JoinedErrorData"},
	"ALIYUN::ROS::WaitConditionHandle": {"", "Count Mode", "CurlCli Headers URL"},
}

// rosParts are the parts of properties that have some.
var rosParts = map[string]string{
	"Certificates":          "CertificateId",
	"ConnectionDrainConfig": "ConnectionDrainEnabled ConnectionDrainTimeout",
	"DefaultActions":        "ForwardGroupConfig Type",
	"HealthCheckConfig": "HealthCheckCodes HealthCheckConnectPort HealthCheckConnectTimeout HealthCheckDomain HealthCheckEnabled HealthCheckHost HealthCheckHttpCode " +
		"HealthCheckHttpVersion HealthCheckInterval HealthCheckMethod HealthCheckPath HealthCheckProtocol HealthCheckTimeout HealthCheckType HealthCheckUrl " +
		"HealthyThreshold HttpCheckMethod UnhealthyThreshold",
	"LoadBalancerBillingConfig": "PayType",
	"Policies":                  "PolicyDocument PolicyName",
	"SecurityGroupEgress":       "Description DestCidrIp IpProtocol Policy PortRange Priority",
	"SecurityGroupIngress":      "Description IpProtocol Policy PortRange Priority SourceCidrIp",
	"ServerGroups":              "Port ServerGroupId Type Weight",
	"StickySessionConfig":       "Cookie CookieTimeout StickySessionEnabled StickySessionType",
	"TagList":                   "Key Value",
	"ZoneMappings":              "VSwitchId ZoneId",
}

// rosAttribute: a resource has the attribute that is asked for.
func (c *cloudformation) rosAttribute(resource, attribute string) {
	c.t.Helper()
	typ, _ := c.all[resource]["Type"].(string)
	if attribute != "" && !slices.Contains(strings.Fields(rosTypes[typ].attributes), attribute) {
		c.t.Errorf("%s: %s, which is %s, has no attribute %s", c.file, resource, typ, attribute)
	}
}

// rosSchema: every resource is of a type that is known here, with all that it must have and nothing that it cannot have.
func (c *cloudformation) rosSchema() {
	c.t.Helper()
	for name, r := range c.all {
		typ, ok := rosTypes[num(r["Type"])]
		if !ok {
			c.t.Errorf("%s: %s is %v, of which this test knows nothing", c.file, name, r["Type"])
			continue
		}
		for key := range r {
			if !slices.Contains([]string{"Type", "Properties", "Condition", "DependsOn", "DeletionPolicy", "Metadata"}, key) {
				c.t.Errorf("%s: %s has a part %s", c.file, name, key)
			}
		}
		p, _ := r["Properties"].(object)
		for key := range p {
			if !slices.Contains(strings.Fields(typ.must+" "+typ.may), key) {
				c.t.Errorf("%s: %s, which is %v, has no property %s", c.file, name, r["Type"], key)
			}
			parts, ok := p[key].([]any)
			if !ok {
				parts = []any{p[key]}
			}
			for _, part := range parts {
				o, _ := part.(object)
				for k := range o {
					if allowed := rosParts[key]; allowed != "" && !slices.Contains(strings.Fields(allowed), k) {
						c.t.Errorf("%s: %s of %s has no %s", c.file, key, name, k)
					}
				}
			}
		}
		for _, key := range strings.Fields(typ.must) {
			if p[key] == nil {
				c.t.Errorf("%s: %s, which is %v, has to have %s", c.file, name, r["Type"], key)
			}
		}
	}
}

// rosCluster is what the template makes on Alibaba Cloud, in the words of this test.
type rosCluster struct {
	// Listeners: port, protocol and to whom.
	Listeners []string
	Targets   map[string]string
	// Rules: who lets in whom, at which ports. Each group denies all else.
	Rules  []string
	Groups map[string]rosGroup
	// Policies: role -> what it may do with what.
	Policies map[string][]string
	Oos      string
	Mongo    rosMongo
}

type rosGroup struct {
	Name, Min, Max, Image, Type string
	Switches                    []string
	Targets                     []string
	Security, Identity          string
	HealthCheck                 string
	Hooks                       []string
	Scaling                     string
	Tags                        []string
	Disk, Public, Spot          string
	UserData                    string
	After                       []string
}

type rosMongo struct {
	Image, Type, Switch, Security, Identity string
	Address, Disk, Source, Metadata         string
	Survives, Public                        bool
	// Secret is what the template writes there.
	Secret, Keys string
	UserData     string
}

func loadROS(t *testing.T, more map[string]any) *cloudformation {
	t.Helper()
	given := map[string]any{
		"ZoneA": "cn-hangzhou-i", "ZoneB": "cn-hangzhou-j", "NodeImage": "m-node", "MongoImage": "m-mongo", "Certificate": "1-cn-hangzhou",
		"ViewerCidr": "198.51.100.0/24", "PublisherCidr": "203.0.113.0/24",
	}
	maps.Copy(given, more)
	c := load(t, alibabaROS, given)
	c.rosSchema()
	return c
}

const rosSecret = "acs:kms:REGION:ACCOUNT:secret/ams-mongo"

// wantROS is the list that the template is held against.
func wantROS() rosCluster {
	health := "GET HTTP 9771 /readyz http_2xx, every 10 s, 5 s, 2 up, 2 down"
	group := func(role string, targets []string) rosGroup {
		return rosGroup{
			Name: "ams-" + role, Min: "1", Max: "10", Image: "m-node", Type: "ecs.c7.xlarge",
			Switches: []string{role + "a cn-hangzhou-i", role + "b cn-hangzhou-j"}, Targets: targets, Security: role, Identity: "ams-node", HealthCheck: "ECS",
			Hooks:   []string{"SCALE_IN 600 CONTINUE ams-scale-in as ams-oos", "SCALE_OUT 900 ABANDON"},
			Scaling: "TargetTrackingScalingRule CpuUtilization 60, out and in", Tags: []string{"Name=ams-" + role, "amsagent-role=" + role},
			Disk: "cloud_essd 40 encrypted", Public: "PayByTraffic 100", Spot: "NoSpot", After: []string{"balancer", "hooks", "mongo", "scaling"},
			UserData: "#!/bin/sh\n# amsagent-role=" + role + "\nuntil amsagent-secret get ams-mongo | amsagent join --mongo file:-; do [ $? = 2 ] && exit 2; sleep 15; done\n",
		}
	}
	sticky := ", sticky Insert"
	return rosCluster{
		Listeners: []string{"1935 TCP rtmp", "443 HTTPS origin", "5080 HTTP edge", "5443 HTTPS edge", "80 HTTP origin"},
		Targets: map[string]string{
			"origin": "HTTP Instance, " + health + ", cuts nobody" + sticky, "edge": "HTTP Instance, " + health + ", cuts nobody" + sticky,
			"rtmp": "TCP Instance, " + health + ", cuts nobody, as they come",
		},
		Rules: []string{
			"balancer tcp 443 from viewers", "balancer tcp 5080 from viewers", "balancer tcp 5443 from viewers", "balancer tcp 80 from viewers",
			"edge tcp 5000 from edge", "edge tcp 5000 from origin", "edge tcp 5080 from balancer", "edge tcp 5080 from edge", "edge tcp 5080 from origin",
			"edge tcp 9771 from balancer", "edge udp 50000-60000 from viewers",
			"mongo tcp 27017 from edge", "mongo tcp 27017 from origin",
			"origin tcp 1935 from publishers",
			"origin tcp 5000 from edge", "origin tcp 5000 from origin", "origin tcp 5080 from balancer", "origin tcp 5080 from edge", "origin tcp 5080 from origin",
			"origin tcp 9771 from balancer", "origin udp 50000-60000 from viewers",
		},
		Groups: map[string]rosGroup{
			"origin": group("origin", []string{"ALB origin 5080", "NLB rtmp 1935"}),
			"edge":   group("edge", []string{"ALB edge 5080"}),
		},
		Policies: map[string][]string{
			"ams-node from ecs": {
				"ecs:ListTagResources ess:CompleteLifecycleAction ess:DescribeLifecycleActions ess:DescribeLifecycleHooks ess:DescribeScalingActivities " +
					"ess:DescribeScalingInstances ess:RecordLifecycleActionHeartbeat on *",
				"kms:GetSecretValue on " + rosSecret,
			},
			"ams-mongo from ecs": {"kms:PutSecretValue on " + rosSecret},
			"ams-oos from oos":   {"ecs:DescribeInvocationResults ecs:DescribeInvocations ecs:RunCommand on *"},
		},
		Oos: "ams-scale-in",
		Mongo: rosMongo{
			Image: "m-mongo", Type: "ecs.g7.large", Switch: "mongo", Security: "mongo", Identity: "ams-mongo", Address: "10.42.2.10", Disk: "cloud_essd 50 encrypted",
			Metadata: "enabled required", Survives: true, Public: true, Secret: "ams-mongo: none yet", Source: "empty",
		},
	}
}

func TestROS(t *testing.T) {
	got := readROS(t, loadROS(t, nil))
	got.Mongo.UserData = ""
	if diff := gocmp.Diff(wantROS(), got); diff != "" {
		t.Errorf("ros.yaml makes something else than wanted (-want +got):\n%s", diff)
	}
}

// TestROSChoices: what parameters change, and that they change nothing else.
func TestROSChoices(t *testing.T) {
	groups := func(c *rosCluster, change func(*rosGroup)) {
		for role, g := range c.Groups {
			change(&g)
			c.Groups[role] = g
		}
	}
	for name, tt := range map[string]struct {
		given  map[string]any
		change func(c *rosCluster)
	}{
		"no certificate": {map[string]any{"Certificate": ""}, func(c *rosCluster) {
			c.Listeners = []string{"1935 TCP rtmp", "5080 HTTP edge", "80 HTTP origin"}
		}},
		"snapshot": {map[string]any{"MongoSnapshot": "s-1"}, func(c *rosCluster) { c.Mongo.Source = "s-1" }},
		"KMS of one's own": {map[string]any{"KmsInstance": "kst-1", "KmsKey": "key-1"}, func(c *rosCluster) {
			c.Mongo.Keys = "kst-1 key-1"
			const key = " on acs:kms:REGION:ACCOUNT:key/key-1"
			c.Policies["ams-node from ecs"] = append(c.Policies["ams-node from ecs"], "kms:Decrypt"+key)
			c.Policies["ams-mongo from ecs"] = append(c.Policies["ams-mongo from ecs"], "kms:GenerateDataKey"+key)
			slices.Sort(c.Policies["ams-node from ecs"])
			slices.Sort(c.Policies["ams-mongo from ecs"])
		}},
		"without OOS": {map[string]any{"Oos": "no"}, func(c *rosCluster) {
			c.Oos = ""
			delete(c.Policies, "ams-oos from oos")
			groups(c, func(g *rosGroup) { g.Hooks[0] = "SCALE_IN 600 CONTINUE" })
		}},
		"more edges": {map[string]any{"EdgeMin": 3}, func(c *rosCluster) {
			g := c.Groups["edge"]
			g.Min = "3"
			c.Groups["edge"] = g
		}},
		"other times": {map[string]any{"HookSeconds": 300, "LaunchSeconds": 600}, func(c *rosCluster) {
			groups(c, func(g *rosGroup) {
				g.Hooks = []string{"SCALE_IN 300 CONTINUE ams-scale-in as ams-oos", "SCALE_OUT 600 ABANDON"}
			})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			want, got := wantROS(), readROS(t, loadROS(t, tt.given))
			tt.change(&want)
			got.Mongo.UserData = ""
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestROSPolicy: what the template permits is what the agent itself says that it needs.
func TestROSPolicy(t *testing.T) {
	provider, err := alibaba.New(cloud.Options{})
	must.OK(t, err)
	api, err := provider.ESS(alibaba.APIOptions{})
	must.OK(t, err)
	policy := ownPolicy(t, api.Policy())
	var want []string
	for _, s := range policy {
		want = append(want, strings.Join(sorted(s.Action), " ")+" on "+s.Resource)
	}
	want = append(want, "kms:GetSecretValue on "+rosSecret)
	if diff := gocmp.Diff(sorted(want), wantROS().Policies["ams-node from ecs"]); diff != "" {
		t.Errorf("-agent +template:\n%s", diff)
	}
	// The page for those who make the role by hand says the same.
	page, err := os.ReadFile("../../docs/clouds/alibaba.md")
	must.OK(t, err)
	for _, s := range policy {
		for _, action := range s.Action {
			if !strings.Contains(string(page), `"`+action+`"`) {
				t.Errorf("docs/clouds/alibaba.md does not permit %s", action)
			}
		}
	}
}

// oosRun evaluates the template of OOS as OOS does: ESS puts what it knows in place of the defaults that are ${...}, and each
// machine of the loop has its command.
func oosRun(t *testing.T, c *cloudformation, machines []string) map[string]string {
	t.Helper()
	var template struct {
		FormatVersion string
		Description   string
		Parameters    map[string]struct {
			Type    string
			Default any
		}
		RamRole string `yaml:"RamRole"`
		Tasks   []struct {
			Name, Action, OnError string
			Properties            map[string]any
			Loop                  struct {
				Items       string
				RateControl map[string]any
			}
		}
	}
	// As it stands there: the names begin with a capital letter.
	content := num(c.of("ALIYUN::OOS::Template")["OosTemplate"]["Content"])
	var doc map[string]any
	must.OK(t, yaml.Unmarshal([]byte(content), &doc))
	b, err := json.Marshal(doc)
	must.OK(t, err)
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	must.OK(t, d.Decode(&template))
	if template.FormatVersion != "OOS-2019-06-01" || len(template.Tasks) != 1 {
		t.Fatalf("%+v", template)
	}
	task := template.Tasks[0]
	// Where an execution fails the wait is over at once.
	if task.Action != "ACS::ECS::RunCommand" || task.OnError != "ACS::END" || task.Loop.RateControl["MaxErrors"] != "100%" {
		t.Errorf("one machine that does not answer ends the wait of all: %+v", task)
	}
	// Those that the hook fills in have to have exactly these defaults.
	known := map[string]any{
		"regionId": "cn-hangzhou", "instanceIds": machines, "lifecycleHookId": "ash-1", "lifecycleActionToken": "T0K3N", "OOSAssumeRole": "ams-oos",
	}
	for name, p := range template.Parameters {
		want := "${" + name + "}"
		switch name {
		case "lifecycleActionResult":
			want = "CONTINUE"
		case "OOSAssumeRole":
			want = "OOSServiceRole"
		case "instanceIds":
			want = "[${instanceIds}]"
		}
		if got := num(p.Default); got != want {
			t.Errorf("%s is %s by default, want %s", name, got, want)
		}
	}
	var value func(v any, item string) any
	value = func(v any, item string) any {
		switch v := v.(type) {
		case map[string]any:
			join, ok := v["Fn::Join"].([]any)
			if !ok || len(v) != 1 || len(join) != 2 {
				t.Fatalf("the function %v is not known", v)
			}
			list, ok := join[1].([]any)
			if !ok {
				list = nil
				for _, e := range value(join[1], item).([]string) {
					list = append(list, e)
				}
			}
			var words []string
			for _, e := range list {
				words = append(words, value(e, item).(string))
			}
			return strings.Join(words, join[0].(string))
		case string:
			if m := regexp.MustCompile(`^\{\{ (\w+) \}\}$`).FindStringSubmatch(v); m != nil && known[m[1]] != nil {
				return known[m[1]]
			}
			return regexp.MustCompile(`\{\{ ([\w:]+) \}\}`).ReplaceAllStringFunc(v, func(s string) string {
				name := strings.Trim(s, "{} ")
				if name == "ACS::TaskLoopItem" {
					return item
				}
				text, ok := known[name].(string)
				if _, declared := template.Parameters[name]; !ok || !declared {
					t.Errorf("%s is no text that is known", s)
				}
				return text
			})
		}
		return v
	}
	if value(template.RamRole, "") != "ams-oos" || gocmp.Diff(value(task.Loop.Items, ""), any(machines)) != "" {
		t.Errorf("by the role %q, over %q", template.RamRole, task.Loop.Items)
	}
	commands := map[string]string{}
	for _, m := range machines {
		if value(task.Properties["instanceId"], m) != m || task.Properties["commandType"] != "RunShellScript" || value(task.Properties["regionId"], m) != "cn-hangzhou" {
			t.Errorf("%+v", task.Properties)
		}
		commands[m] = value(task.Properties["commandContent"], m).(string)
	}
	return commands
}

// TestROSHookTellsAgent: what the hook makes Cloud Assistant run is an event that the agent understands, about all machines of
// the token, and it never fails: Auto Scaling would cut who is there.
func TestROSHookTellsAgent(t *testing.T) {
	machines := []string{"i-bp1aaaaaaaaaaaaaaaa1", "i-bp1aaaaaaaaaaaaaaaa2"}
	commands := oosRun(t, loadROS(t, nil), machines)
	if len(commands) != 2 {
		t.Fatalf("%q", commands)
	}
	for _, agent := range []string{`cat; [ "$*" = "event --detach" ]`, `echo 'no daemon' >&2; exit 1`} {
		dir := t.TempDir()
		must.OK(t, os.WriteFile(dir+"/amsagent", []byte("#!/bin/sh\n"+agent+"\n"), 0o755))
		cmd := exec.CommandContext(t.Context(), "sh", "-c", commands[machines[0]])
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("the command fails: %v", err)
		}
		if strings.HasPrefix(agent, "echo") {
			continue
		}
		e, err := lifecycle.ParseEvent(out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		mine, ok := e.For(machines[0])
		if !ok || mine.Kind != lifecycle.Terminate || mine.Hook.Name != "ash-1" || mine.Hook.Token != "T0K3N" || !slices.Equal(mine.Hook.Others, machines[1:]) {
			t.Errorf("the agent reads %+v", mine)
		}
	}
}

func readROS(t *testing.T, c *cloudformation) rosCluster {
	t.Helper()
	words := strings.NewReplacer("${ALIYUN::Region}", "REGION", "${ALIYUN::TenantId}", "ACCOUNT", "${OosTemplate}", "oos-template", "${OosRole}", "oos-role",
		"${MongoReadyHandle.CurlCli}", `curl -i -X POST -H 'Content-Type: application/json' 'https://HANDLE/?a=b&c=d'`, "${MongoDisk}", "d-bp1disk")
	say := func(v any) string { return words.Replace(num(v)) }
	// of follows a reference to a resource of that type.
	of := func(v any, typ string) (string, object) {
		t.Helper()
		name := strings.TrimSuffix(strings.TrimPrefix(num(v), "${"), "}")
		p, ok := c.of(typ)[name]
		if !ok {
			t.Errorf("%v is no %s", v, typ)
		}
		return name, p
	}
	part := func(v any, typ, suffix string) string {
		t.Helper()
		name, _ := of(v, typ)
		if !strings.HasSuffix(name, suffix) {
			t.Errorf("%v is no %s", v, suffix)
		}
		return strings.ToLower(strings.TrimSuffix(name, suffix))
	}
	sub := func(v any, keys ...string) any { return armLookup(v, keys...) }
	list := func(v any) []object {
		var out []object
		l, _ := v.([]any)
		for _, e := range l {
			out = append(out, e.(object))
		}
		return out
	}
	const (
		albGroup, nlbGroup   = "ALIYUN::ALB::ServerGroup", "ALIYUN::NLB::ServerGroup"
		securityGroup, vpc   = "ALIYUN::ECS::SecurityGroup", "ALIYUN::ECS::VPC"
		vswitch, scalingOf   = "ALIYUN::ECS::VSwitch", "ALIYUN::ESS::ScalingGroup"
		roleType, balancerOf = "ALIYUN::RAM::Role", "ALIYUN::ALB::LoadBalancer"
	)
	out := rosCluster{Targets: map[string]string{}, Groups: map[string]rosGroup{}, Policies: map[string][]string{}}

	// Networks: where a rule says an address, it means one of these.
	network := map[string][]string{}
	for name, s := range c.of(vswitch) {
		of(s["VpcId"], vpc)
		for _, part := range []string{"Balancer", "Mongo", "Origin", "Edge"} {
			if strings.HasPrefix(name, part) {
				network[part] = append(network[part], num(s["CidrBlock"]))
			}
		}
	}
	from := func(cidr string) string {
		for part, of := range map[string]string{"Balancer": "10.42.0.0/23", "Mongo": "10.42.2.0/24", "Origin": "10.42.16.0/20", "Edge": "10.42.32.0/20"} {
			if cidr == of {
				if !covers(t, of, network[part]) {
					t.Errorf("%s are not %s: %v", of, part, network[part])
				}
				return strings.ToLower(part)
			}
		}
		return who(cidr)
	}
	for name, g := range c.of(securityGroup) {
		of(g["VpcId"], vpc)
		if g["SecurityGroupType"] != "enterprise" {
			t.Errorf("%s lets its members reach each other at all ports", name)
		}
		denied := false
		for _, r := range list(g["SecurityGroupIngress"]) {
			first, last, _ := strings.Cut(num(r["PortRange"]), "/")
			if r["Policy"] == "drop" {
				denied = r["Priority"] == 100 && r["IpProtocol"] == "all" && r["PortRange"] == "-1/-1" && r["SourceCidrIp"] == "0.0.0.0/0"
				continue
			}
			if r["Policy"] != "accept" || r["Priority"] != 10 {
				t.Errorf("%s: a rule %v", name, r)
			}
			out.Rules = append(out.Rules, fmt.Sprintf("%s %v %s from %s", strings.ToLower(strings.TrimSuffix(name, "Group")), r["IpProtocol"], ports(first, last), from(num(r["SourceCidrIp"]))))
		}
		if !denied {
			t.Errorf("%s denies nobody: an ALB would take everybody", name)
		}
	}
	slices.Sort(out.Rules)

	zones := func(b object) {
		t.Helper()
		of(b["VpcId"], vpc)
		var got []string
		for _, z := range list(b["ZoneMappings"]) {
			name, s := of(z["VSwitchId"], vswitch)
			if s["ZoneId"] != z["ZoneId"] || !strings.HasPrefix(name, "Balancer") {
				t.Errorf("%s is in %v, not in %v", name, s["ZoneId"], z["ZoneId"])
			}
			got = append(got, num(z["ZoneId"]))
		}
		if diff := gocmp.Diff([]string{"cn-hangzhou-i", "cn-hangzhou-j"}, got); diff != "" || b["AddressType"] != "Internet" {
			t.Errorf("a balancer: %v\n%s", b["AddressType"], diff)
		}
	}
	alb := c.of(balancerOf)["Balancer"]
	zones(alb)
	if alb["LoadBalancerEdition"] != "Standard" || part(alb["SecurityGroupIds"].([]any)[0], securityGroup, "Group") != "balancer" {
		t.Errorf("the balancer: %v", alb)
	}
	nlb := c.of("ALIYUN::NLB::LoadBalancer")["RtmpBalancer"]
	zones(nlb)
	if nlb["CrossZoneEnabled"] != true {
		t.Error("a zone without origins answers nobody")
	}
	for name, l := range c.of("ALIYUN::ALB::Listener") {
		of(l["LoadBalancerId"], balancerOf)
		action := list(l["DefaultActions"])[0]
		if action["Type"] != "ForwardGroup" {
			t.Errorf("%s does %v", name, action["Type"])
		}
		certificates := list(l["Certificates"])
		if (l["ListenerProtocol"] == "HTTPS") != (len(certificates) == 1 && certificates[0]["CertificateId"] == "1-cn-hangzhou" && strings.HasPrefix(num(l["SecurityPolicyId"]), "tls_cipher_policy_1_2_strict")) {
			t.Errorf("%s: certificates %v by %v", name, certificates, l["SecurityPolicyId"])
		}
		if n, ok := l["IdleTimeout"].(int); !ok || n < 300 || n > 600 {
			t.Errorf("%s cuts a WebSocket that is silent for %v s", name, l["IdleTimeout"])
		}
		to := list(sub(action, "ForwardGroupConfig", "ServerGroupTuples"))
		out.Listeners = append(out.Listeners, fmt.Sprintf("%v %v %s", l["ListenerPort"], l["ListenerProtocol"], part(to[0]["ServerGroupId"], albGroup, "Targets")))
	}
	for _, l := range c.of("ALIYUN::NLB::Listener") {
		of(l["LoadBalancerId"], "ALIYUN::NLB::LoadBalancer")
		out.Listeners = append(out.Listeners, fmt.Sprintf("%v %v %s", l["ListenerPort"], l["ListenerProtocol"], part(l["ServerGroupId"], nlbGroup, "Targets")))
	}
	slices.Sort(out.Listeners)
	cuts := func(drains any) string {
		if drains != false {
			return "cuts after a while"
		}
		return "cuts nobody"
	}
	for name, g := range c.of(albGroup) {
		of(g["VpcId"], vpc)
		h := g["HealthCheckConfig"].(object)
		words := fmt.Sprintf("%v %v, %v %v %v %v %s, every %v s, %v s, %v up, %v down, %s", g["Protocol"], g["ServerGroupType"], h["HealthCheckMethod"], h["HealthCheckProtocol"],
			h["HealthCheckConnectPort"], h["HealthCheckPath"], strings.Join(strs(h["HealthCheckCodes"]), " "), h["HealthCheckInterval"], h["HealthCheckTimeout"],
			h["HealthyThreshold"], h["UnhealthyThreshold"], cuts(sub(g, "ConnectionDrainConfig", "ConnectionDrainEnabled")))
		if s := g["StickySessionConfig"].(object); s["StickySessionEnabled"] == true {
			words += ", sticky " + num(s["StickySessionType"])
		}
		if h["HealthCheckEnabled"] != true {
			words = "no health check"
		}
		out.Targets[strings.ToLower(strings.TrimSuffix(name, "Targets"))] = words
	}
	for name, g := range c.of(nlbGroup) {
		of(g["VpcId"], vpc)
		h := g["HealthCheckConfig"].(object)
		words := fmt.Sprintf("%v %v, %v %v %v %v %s, every %v s, %v s, %v up, %v down, %s", g["Protocol"], g["ServerGroupType"], h["HttpCheckMethod"], h["HealthCheckType"],
			h["HealthCheckConnectPort"], h["HealthCheckUrl"], strings.Join(strs(h["HealthCheckHttpCode"]), " "), h["HealthCheckInterval"], h["HealthCheckConnectTimeout"],
			h["HealthyThreshold"], h["UnhealthyThreshold"], cuts(g["ConnectionDrainEnabled"]))
		if g["PreserveClientIpEnabled"] == true {
			words += ", as they come"
		}
		if h["HealthCheckEnabled"] != true {
			words = "no health check"
		}
		out.Targets[strings.ToLower(strings.TrimSuffix(name, "Targets"))] = words
	}

	role := func(v any) string {
		t.Helper()
		_, r := of(v, roleType)
		return num(r["RoleName"])
	}
	documents := map[string][]any{}
	names := map[string]bool{}
	policy := func(role string, p object) {
		t.Helper()
		document := p["PolicyDocument"].(object)
		if document["Version"] != "1" || names[num(p["PolicyName"])] {
			t.Errorf("the policy %v: version %v, or its name is taken", p["PolicyName"], document["Version"])
		}
		names[num(p["PolicyName"])] = true
		documents[role] = append(documents[role], document["Statement"].([]any)...)
	}
	trusts := map[string]string{}
	for _, r := range c.of(roleType) {
		for _, p := range list(r["Policies"]) {
			policy(num(r["RoleName"]), p)
		}
		trust := list(sub(r, "AssumeRolePolicyDocument", "Statement"))
		services := strs(sub(trust[0], "Principal", "Service"))
		if len(trust) != 1 || len(services) != 1 || trust[0]["Effect"] != "Allow" || trust[0]["Action"] != "sts:AssumeRole" {
			t.Errorf("%v is for %v", r["RoleName"], trust)
		}
		trusts[num(r["RoleName"])] = strings.TrimSuffix(services[0], ".aliyuncs.com")
	}
	for _, p := range c.of("ALIYUN::RAM::ManagedPolicy") {
		for _, r := range p["Roles"].([]any) {
			policy(role(r), p)
		}
	}
	for name, l := range documents {
		var lines []string
		for _, s := range statements(l) {
			lines = append(lines, words.Replace(s))
		}
		out.Policies[name+" from "+trusts[name]] = lines
	}

	for key, o := range c.of("ALIYUN::OOS::Template") {
		out.Oos = num(o["TemplateName"])
		if key != "OosTemplate" {
			t.Errorf("a second template %s", key)
		}
	}
	hooks := map[string][]string{}
	for name, h := range c.of("ALIYUN::ESS::LifecycleHook") {
		group, _ := of(h["ScalingGroupId"], scalingOf)
		words := fmt.Sprintf("%v %v %v", h["LifecycleTransition"], h["HeartbeatTimeout"], h["DefaultResult"])
		if arn := h["NotificationArn"]; arn != nil {
			var metadata map[string]string
			if err := json.Unmarshal([]byte(num(h["NotificationMetadata"])), &metadata); err != nil || len(metadata) != 1 || len(num(h["NotificationMetadata"])) > 128 {
				t.Errorf("%s tells OOS %v (%v)", name, h["NotificationMetadata"], err)
			}
			if say(arn) != "acs:ess:REGION:ACCOUNT:oos/oos-template" {
				t.Errorf("%s tells %v", name, arn)
			}
			// A Ref to a template of OOS is its name.
			words += " " + out.Oos + " as " + role(metadata["OOSAssumeRole"])
		} else if h["NotificationMetadata"] != nil {
			t.Errorf("%s tells nobody %v", name, h["NotificationMetadata"])
		}
		hooks[group] = append(hooks[group], words)
	}
	scaling := map[string]string{}
	for _, r := range c.of("ALIYUN::ESS::ScalingRule") {
		group, _ := of(r["ScalingGroupId"], scalingOf)
		direction := "out and in"
		if r["DisableScaleIn"] != false {
			direction = "out"
		}
		scaling[group] += fmt.Sprintf("%v %v %v, %s", r["ScalingRuleType"], r["MetricName"], r["TargetValue"], direction)
	}
	for name, e := range c.of("ALIYUN::ESS::ScalingGroupEnable") {
		key, g := of(e["ScalingGroupId"], scalingOf)
		_, d := of(e["ScalingConfigurationId"], "ALIYUN::ESS::ScalingConfiguration")
		if d["ScalingGroupId"] != "${"+key+"}" {
			t.Errorf("%s starts machines of %v", key, d["ScalingGroupId"])
		}
		group := rosGroup{
			Name: num(g["ScalingGroupName"]), Min: num(g["MinSize"]), Max: num(g["MaxSize"]), Image: num(d["ImageId"]), Type: strings.Join(strs(d["InstanceTypes"]), " "),
			Security: part(d["SecurityGroupId"], securityGroup, "Group"), Identity: role(d["RamRoleName"]), HealthCheck: num(g["HealthCheckType"]),
			Hooks: sorted(hooks[key]), Scaling: scaling[key], Disk: diskWords(d["SystemDiskCategory"], d["SystemDiskSize"], d["SystemDiskEncrypted"]),
			Public: num(d["InternetChargeType"]) + " " + num(d["InternetMaxBandwidthOut"]), Spot: num(d["SpotStrategy"]), UserData: say(d["UserData"]),
		}
		for _, s := range g["VSwitchIds"].([]any) {
			id, p := of(s, vswitch)
			group.Switches = append(group.Switches, strings.ToLower(strings.ReplaceAll(id, "Switch", ""))+" "+num(p["ZoneId"]))
		}
		for _, s := range list(g["ServerGroups"]) {
			typ := map[any]string{"ALB": albGroup, "NLB": nlbGroup}[s["Type"]]
			group.Targets = append(group.Targets, fmt.Sprintf("%v %s %v", s["Type"], part(s["ServerGroupId"], typ, "Targets"), s["Port"]))
		}
		for _, tag := range list(d["TagList"]) {
			group.Tags = append(group.Tags, num(tag["Key"])+"="+num(tag["Value"]))
		}
		slices.Sort(group.Tags)
		checkTagKeys(t, group.Tags)
		// Of what it waits: the machine of MongoDB, both its own hooks, its rule, a listener of its targets.
		after := map[string]int{}
		for _, on := range strs(c.all[name]["DependsOn"]) {
			r := c.all[on]
			p, _ := r["Properties"].(object)
			own := gocmp.Equal(p["ScalingGroupId"], any(object{"Ref": key}))
			switch r["Type"] {
			case "ALIYUN::ROS::WaitCondition":
				after["mongo"]++
			case "ALIYUN::ESS::LifecycleHook":
				if own {
					after["hooks"]++
				}
			case "ALIYUN::ESS::ScalingRule":
				if own {
					after["scaling"]++
				}
			case "ALIYUN::ALB::Listener", "ALIYUN::NLB::Listener":
				after["balancer"]++
			}
		}
		if after["hooks"] != 2 || after["balancer"] != len(group.Targets) {
			t.Errorf("%s begins without waiting for its hooks and listeners: %v", key, after)
		}
		group.After = slices.Sorted(maps.Keys(after))
		out.Groups[strings.ToLower(strings.TrimSuffix(key, "s"))] = group
	}

	m := c.of("ALIYUN::ECS::Instance")["Mongo"]
	disk := c.of("ALIYUN::ECS::Disk")["MongoDisk"]
	secret := c.of("ALIYUN::KMS::Secret")["MongoSecret"]
	out.Mongo = rosMongo{
		Image: num(m["ImageId"]), Type: num(m["InstanceType"]), Switch: part(m["VSwitchId"], vswitch, "Switch"), Security: part(m["SecurityGroupId"], securityGroup, "Group"),
		Identity: role(m["RamRoleName"]), Address: num(m["PrivateIpAddress"]), Disk: diskWords(disk["DiskCategory"], disk["Size"], disk["Encrypted"]), Source: "empty",
		Metadata: num(m["HttpEndpoint"]) + " " + num(m["HttpTokens"]), Public: m["AllocatePublicIP"] == true, UserData: say(m["UserData"]),
		Secret: num(secret["SecretName"]) + ": " + num(secret["SecretData"]),
	}
	if s := disk["SnapshotId"]; s != nil {
		out.Mongo.Source = num(s)
	}
	if k := secret["DKMSInstanceId"]; k != nil {
		out.Mongo.Keys = num(k) + " " + num(secret["EncryptionKeyId"])
	}
	a := c.of("ALIYUN::ECS::DiskAttachment")["MongoAttachment"]
	if a["DiskId"] != "${MongoDisk}" || a["InstanceId"] != "${Mongo}" || disk["ZoneId"] != m["ZoneId"] {
		t.Errorf("the disk of MongoDB is attached as %v", a)
	}
	out.Mongo.Survives = c.all["MongoDisk"]["DeletionPolicy"] == "Retain" && a["DeleteWithInstance"] == false
	ready := c.all["MongoReady"]
	if !slices.Contains(strs(ready["DependsOn"]), "MongoAttachment") || sub(ready, "Properties", "Handle", "Ref") != "MongoReadyHandle" {
		t.Errorf("the nodes wait for %v", ready)
	}
	return out
}

// covers: the networks are within one, and fill it.
func covers(t *testing.T, whole string, parts []string) bool {
	t.Helper()
	outer, err := netip.ParsePrefix(whole)
	must.OK(t, err)
	size := 0
	for _, p := range parts {
		inner, err := netip.ParsePrefix(p)
		must.OK(t, err)
		if !outer.Contains(inner.Addr()) || inner != inner.Masked() {
			return false
		}
		size += 1 << (32 - inner.Bits())
	}
	return size == 1<<(32-outer.Bits())
}

// TestROSMongoMachine runs the script of MongoDB's machine: install.sh is a stand-in here, since its own tests run it; the
// program that puts the secret into KMS is the real one, and so is its signature.
func TestROSMongoMachine(t *testing.T) {
	data := readROS(t, loadROS(t, nil)).Mongo.UserData
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

// armLookup follows keys through objects.
func armLookup(v any, keys ...string) any {
	for _, k := range keys {
		o, _ := v.(object)
		v = o[k]
	}
	return v
}
