// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
)

const azureBicep = "../../packaging/cloud/azure/main.bicep"

// azureCluster is what the template makes on Azure, in the words of this test.
type azureCluster struct {
	// Listeners: port, protocol and to whom.
	Listeners []string
	Backends  map[string]string
	// Rules: who lets in whom, at which ports. Each group denies all else.
	Rules  []string
	Groups map[string]azureGroup
	// Rights: who may do what with the vault; nothing else is given.
	Rights []string
	Vault  string
	Mongo  azureMongo
}

type azureGroup struct {
	Name, Image, Size, Count string
	Kind                     string
	Notice                   string
	Upgrades                 string
	Scaling                  []string
	Zones                    []string
	Subnet, Pools            string
	Public, Disk             string
	Tags                     []string
	Identity                 string
	Password                 bool
	UserData                 string
}

type azureMongo struct {
	Image, Size, Subnet, Address, Disk, Source string
	Survives, Password                         bool
	ConnectionIsEmpty                          bool
	Identity, UserData                         string
}

const azureVaultHost = "ams-unique0000000.vault.azure.net"

func azureIdentityURL(name string) string {
	return "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net&client_id=" +
		"<Microsoft.ManagedIdentity/userAssignedIdentities/" + name + ">.clientId"
}

func wantAzure() azureCluster {
	backend := "HTTP 5080, HTTP 9771 /readyz 200, every 10 s, 2 down, draining 3600 s, cookie Enabled"
	group := func(role, pools string) azureGroup {
		return azureGroup{
			Name: "ams-" + role, Image: "IMAGE", Size: "Standard_F4s_v2", Count: "1", Kind: "Uniform, Regular, overprovision false, repairs false",
			Notice: "Terminate PT15M", Upgrades: "Manual, of the system false",
			Scaling: []string{
				"1 to 10, 1 by default",
				"Average of Percentage CPU over PT5M GreaterThan 60: Increase by 1, then PT5M",
				"Average of Percentage CPU over PT5M LessThan 60: Decrease by 1, then PT5M",
			},
			Zones: []string{"1", "2", "3"}, Subnet: role, Pools: pools, Public: "Standard", Disk: "Premium_LRS, by the host false",
			Tags: []string{"amsagent-role=" + role}, Identity: "ams-" + role,
			UserData: "#!/bin/sh\nuntil curl -fsS --noproxy '*' -H 'Metadata: true' '" + azureIdentityURL("ams-"+role) + `' | jq -r '"Authorization: Bearer " + .access_token'` +
				" | curl -fsS -H @- 'https://" + azureVaultHost + "/secrets/mongo?api-version=7.4' | jq -er .value | amsagent join --mongo file:-; do [ $? = 2 ] && exit 2; sleep 15; done\n",
		}
	}
	return azureCluster{
		Listeners: []string{"1935 TCP origin", "443 HTTPS origin", "5080 HTTP edge", "5443 HTTPS edge", "80 HTTP origin"},
		Backends: map[string]string{
			"origin": backend, "edge": backend,
			"rtmp": "Tcp 1935, HTTP 9771 /readyz, every 10 s, 2 down, Standard",
		},
		Rules: []string{
			"edge Tcp 5000 from edge", "edge Tcp 5000 from origin", "edge Tcp 5080 from edge", "edge Tcp 5080 from gateway", "edge Tcp 5080 from origin",
			"edge Tcp 9771 from gateway", "edge Udp 50000-60000 from viewers",
			"gateway * 0-65535 from AzureLoadBalancer",
			"gateway Tcp 443 from viewers", "gateway Tcp 5080 from viewers", "gateway Tcp 5443 from viewers", "gateway Tcp 65200-65535 from GatewayManager", "gateway Tcp 80 from viewers",
			"mongo Tcp 27017 from edge", "mongo Tcp 27017 from origin",
			"origin Tcp 1935 from publishers",
			"origin Tcp 5000 from edge", "origin Tcp 5000 from origin", "origin Tcp 5080 from edge", "origin Tcp 5080 from gateway", "origin Tcp 5080 from origin",
			"origin Tcp 9771 from AzureLoadBalancer", "origin Tcp 9771 from gateway", "origin Udp 50000-60000 from viewers",
		},
		Groups: map[string]azureGroup{
			"origin": group("origin", "ams/origin ams-rtmp/origin"),
			"edge":   group("edge", "ams/edge"),
		},
		Rights: []string{"ams-edge secrets get", "ams-mongo secrets set", "ams-origin secrets get"},
		Vault:  "Deny, past it None, from edge mongo origin",
		Mongo: azureMongo{
			Image: "Debian debian-12 12-gen2", Size: "Standard_D2s_v5", Subnet: "mongo", Address: "Static 10.42.1.10", Disk: "Premium_LRS 64 at 0 by SCSI",
			Source: "Empty", Survives: true, ConnectionIsEmpty: true, Identity: "ams-mongo",
		},
	}
}

func loadAzure(t *testing.T, more object) *azureTemplate {
	t.Helper()
	given := map[string]any{
		"nodeImage": "IMAGE", "sshKey": "KEY", "certificate": "PFX", "certificatePassword": "PASSWORD",
		"viewerSource": "198.51.100.0/24", "publisherSource": "203.0.113.0/24",
	}
	for k, v := range more {
		given[k] = v
	}
	return loadBicep(t, azureBicep, given)
}

func TestAzure(t *testing.T) {
	got := readAzure(t, loadAzure(t, nil))
	got.Mongo.UserData = ""
	if diff := gocmp.Diff(wantAzure(), got); diff != "" {
		t.Errorf("main.bicep makes something else than wanted (-want +got):\n%s", diff)
	}
}

// TestAzureChoices: what parameters change, and that they change nothing else.
func TestAzureChoices(t *testing.T) {
	for name, tt := range map[string]struct {
		given  object
		change func(c *azureCluster)
	}{
		"no certificate": {object{"certificate": ""}, func(c *azureCluster) {
			c.Listeners = []string{"1935 TCP origin", "5080 HTTP edge", "80 HTTP origin"}
		}},
		"snapshot": {object{"mongoSnapshot": "SNAPSHOT"}, func(c *azureCluster) { c.Mongo.Source = "Copy SNAPSHOT" }},
		"no zones": {object{"zones": []any{}}, func(c *azureCluster) {
			for role, g := range c.Groups {
				g.Zones = nil
				c.Groups[role] = g
			}
		}},
		"another deployment": {object{"edgeCount": 7.0}, func(c *azureCluster) {
			g := c.Groups["edge"]
			g.Count = "7"
			c.Groups["edge"] = g
		}},
		"more edges": {object{"edgeMin": 3.0}, func(c *azureCluster) {
			g := c.Groups["edge"]
			g.Count, g.Scaling[0] = "3", "3 to 10, 3 by default"
			c.Groups["edge"] = g
		}},
		"by the host": {object{"encryptionAtHost": true}, func(c *azureCluster) {
			for role, g := range c.Groups {
				g.Disk = "Premium_LRS, by the host true"
				c.Groups[role] = g
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			want, got := wantAzure(), readAzure(t, loadAzure(t, tt.given))
			tt.change(&want)
			got.Mongo.UserData = ""
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestAzureGivesNoOtherRight: a type of resource that gives rights may not come in
// without a look at this test, nor a machine with another identity.
func TestAzureGivesNoOtherRight(t *testing.T) {
	for id, r := range loadAzure(t, nil).resources {
		if strings.HasPrefix(num(r["type"]), "Microsoft.Authorization/") {
			t.Errorf("%s gives a right", id)
		}
		if kind := armLookup(r, "identity", "type"); kind != nil && kind != "UserAssigned" {
			t.Errorf("%s has an identity %v", id, kind)
		}
	}
}

// TestAzureSecrets: the certificate and its password are in no place but the one that
// needs them, no output tells them, and their parameters are shown nowhere.
func TestAzureSecrets(t *testing.T) {
	a := loadAzure(t, object{"certificate": "C3RT1F1CAT3", "certificatePassword": "PA55W0RD"})
	var look func(path string, v any)
	look = func(path string, v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				look(path, e)
			}
		case object:
			for k, e := range v {
				look(path+"."+k, e)
			}
		case string:
			if (strings.Contains(v, "C3RT1F1CAT3") || strings.Contains(v, "PA55W0RD")) && !strings.Contains(path, ".sslCertificates.properties.") {
				t.Errorf("%s tells a secret", path)
			}
		}
	}
	for id, r := range a.resources {
		look(id, r)
	}
	look("outputs", a.outputs)
	if a.secrets != 2 {
		t.Errorf("%d parameters are secrets, want 2", a.secrets)
	}
}

// azureNetwork tells whom a source of a rule is.
func azureNetwork(prefix string) string {
	if name, ok := map[string]string{"10.42.0.0/24": "gateway", "10.42.1.0/24": "mongo", "10.42.4.0/22": "origin", "10.42.8.0/22": "edge"}[prefix]; ok {
		return name
	}
	return who(prefix)
}

func readAzure(t *testing.T, a *azureTemplate) azureCluster {
	t.Helper()
	out := azureCluster{Backends: map[string]string{}, Groups: map[string]azureGroup{}}
	list := func(v any, keys ...string) []any {
		l, _ := armLookup(v, keys...).([]any)
		return l
	}
	last := func(id any) string { return num(id)[strings.LastIndex(num(id), "/")+1:] }
	// part follows an id to a part of the same balancer.
	part := func(of object, id string, reference any) object {
		t.Helper()
		kind, name, ok := strings.Cut(strings.TrimPrefix(num(armLookup(reference, "id")), id+"/"), "/")
		if !ok {
			t.Fatalf("%v is no part of %s", reference, id)
		}
		return a.named(armLookup(of, "properties", kind), name)
	}

	gateway, gatewayID := a.of("Microsoft.Network/applicationGateways")["ams"], "<Microsoft.Network/applicationGateways/ams>"
	for _, r := range list(gateway, "properties", "requestRoutingRules") {
		r := r.(object)["properties"].(object)
		listener, settings := part(gateway, gatewayID, r["httpListener"]), part(gateway, gatewayID, r["backendHttpSettings"])
		part(gateway, gatewayID, r["backendAddressPool"])
		pool := last(armLookup(r, "backendAddressPool", "id"))
		protocol := strings.ToUpper(num(listener["protocol"]))
		if protocol == "HTTPS" && part(gateway, gatewayID, listener["sslCertificate"])["data"] != "PFX" {
			t.Errorf("the certificate is %v", listener["sslCertificate"])
		}
		front := part(gateway, gatewayID, listener["frontendIPConfiguration"])
		if address := armLookup(front, "publicIPAddress", "id"); address != "<Microsoft.Network/publicIPAddresses/ams-gateway>" {
			t.Errorf("the gateway's address is %v", address)
		}
		out.Listeners = append(out.Listeners, fmt.Sprintf("%v %s %s", part(gateway, gatewayID, listener["frontendPort"])["port"], protocol, pool))
		probe, draining := part(gateway, gatewayID, settings["probe"]), settings["connectionDraining"].(object)
		if draining["enabled"] != true {
			t.Error("nobody drains")
		}
		out.Backends[pool] = fmt.Sprintf("%s %v, %s %v %v %s, every %v s, %v down, draining %v s, cookie %v", strings.ToUpper(num(settings["protocol"])), settings["port"],
			strings.ToUpper(num(probe["protocol"])), probe["port"], probe["path"], strings.Join(strs(armLookup(probe, "match", "statusCodes")), " "), probe["interval"],
			probe["unhealthyThreshold"], draining["drainTimeoutInSec"], settings["cookieBasedAffinity"])
	}
	if n := len(list(gateway, "properties", "httpListeners")); n != len(out.Listeners) {
		t.Errorf("%d listeners for %d rules", n, len(out.Listeners))
	}
	if n := len(list(gateway, "properties", "sslCertificates")); (n == 1) != slices.Contains(out.Listeners, "443 HTTPS origin") || n > 1 {
		t.Errorf("%d certificates for %v", n, out.Listeners)
	}
	rtmp, rtmpID := a.of("Microsoft.Network/loadBalancers")["ams-rtmp"], "<Microsoft.Network/loadBalancers/ams-rtmp>"
	for _, r := range list(rtmp, "properties", "loadBalancingRules") {
		r := r.(object)["properties"].(object)
		probe := part(rtmp, rtmpID, r["probe"])
		part(rtmp, rtmpID, r["backendAddressPool"])
		part(rtmp, rtmpID, r["frontendIPConfiguration"])
		out.Listeners = append(out.Listeners, fmt.Sprintf("%v %s %s", r["frontendPort"], strings.ToUpper(num(r["protocol"])), last(armLookup(r, "backendAddressPool", "id"))))
		out.Backends["rtmp"] = fmt.Sprintf("%v %v, %s %v %v, every %v s, %v down, %v", r["protocol"], r["backendPort"], strings.ToUpper(num(probe["protocol"])), probe["port"],
			probe["requestPath"], probe["intervalInSeconds"], probe["probeThreshold"], armLookup(rtmp, "sku", "name"))
	}
	slices.Sort(out.Listeners)

	subnets := map[string]bool{}
	for _, s := range list(a.of("Microsoft.Network/virtualNetworks")["ams"], "properties", "subnets") {
		s := s.(object)
		name := num(s["name"])
		subnets[name] = true
		if group := armLookup(s, "properties", "networkSecurityGroup", "id"); group != "<Microsoft.Network/networkSecurityGroups/ams-"+name+">" {
			t.Errorf("the rules of %s are %v", name, group)
		}
		if azureNetwork(num(armLookup(s, "properties", "addressPrefix"))) != name {
			t.Errorf("%s has the addresses %v", name, armLookup(s, "properties", "addressPrefix"))
		}
	}
	for name, g := range a.of("Microsoft.Network/networkSecurityGroups") {
		denied := false
		for _, r := range list(g, "properties", "securityRules") {
			p := r.(object)["properties"].(object)
			from := strs(p["sourceAddressPrefixes"])
			if p["sourceAddressPrefix"] != nil {
				from = append(from, num(p["sourceAddressPrefix"]))
			}
			if p["direction"] != "Inbound" || len(from) == 0 || p["destinationAddressPrefix"] != "*" || p["sourcePortRange"] != "*" {
				t.Errorf("%s: a rule %v", name, p)
			}
			if p["access"] == "Deny" {
				denied = p["priority"] == 4096.0 && p["protocol"] == "*" && slices.Equal(from, []string{"*"}) && slices.Equal(strs(p["destinationPortRanges"]), []string{"0-65535"})
				continue
			}
			for _, f := range from {
				for _, port := range strs(p["destinationPortRanges"]) {
					out.Rules = append(out.Rules, fmt.Sprintf("%s %v %s from %s", strings.TrimPrefix(name, "ams-"), p["protocol"], port, azureNetwork(f)))
				}
			}
		}
		if !denied {
			t.Errorf("%s lets in the whole network: nothing denies what is not allowed", name)
		}
	}
	slices.Sort(out.Rules)

	vault := a.of("Microsoft.KeyVault/vaults")["ams-unique0000000"]
	if armLookup(vault, "properties", "enableRbacAuthorization") != false {
		t.Error("the vault does not go by its policies")
	}
	identity := func(id string) string {
		return strings.TrimPrefix(strings.TrimSuffix(id, ">"), "<Microsoft.ManagedIdentity/userAssignedIdentities/")
	}
	for _, p := range list(vault, "properties", "accessPolicies") {
		for kind, verbs := range armLookup(p, "permissions").(object) {
			for _, verb := range strs(verbs) {
				out.Rights = append(out.Rights, identity(strings.TrimSuffix(num(p.(object)["objectId"]), ".principalId"))+" "+kind+" "+verb)
			}
		}
	}
	slices.Sort(out.Rights)
	var from []string
	for _, r := range list(vault, "properties", "networkAcls", "virtualNetworkRules") {
		from = append(from, last(r.(object)["id"]))
	}
	out.Vault = fmt.Sprintf("%v, past it %v, from %s", armLookup(vault, "properties", "networkAcls", "defaultAction"), armLookup(vault, "properties", "networkAcls", "bypass"),
		strings.Join(sorted(from), " "))

	who := func(r object) string {
		var out []string
		for id := range armLookup(r, "identity", "userAssignedIdentities").(object) {
			out = append(out, identity(id))
		}
		return strings.Join(sorted(out), " ")
	}
	data := func(profile any) string {
		b, err := base64.StdEncoding.DecodeString(num(armLookup(profile, "customData")))
		must.OK(t, err)
		return string(b)
	}
	subnet := func(v any) string {
		id, ok := strings.CutPrefix(num(armLookup(v, "subnet", "id")), "<Microsoft.Network/virtualNetworks/ams>/subnets/")
		if !ok || !subnets[id] {
			t.Errorf("%v is no subnet", armLookup(v, "subnet", "id"))
		}
		return id
	}
	for name, s := range a.of("Microsoft.Compute/virtualMachineScaleSets") {
		p := s["properties"].(object)
		profile := p["virtualMachineProfile"].(object)
		nic := a.named(armLookup(profile, "networkProfile", "networkInterfaceConfigurations"), "node")
		ip := a.named(nic["ipConfigurations"], "node")
		notice := "none"
		if n := armLookup(profile, "scheduledEventsProfile", "terminateNotificationProfile").(object); n["enable"] == true {
			notice = "Terminate " + num(n["notBeforeTimeout"])
		}
		g := azureGroup{
			Name: name, Image: num(armLookup(profile, "storageProfile", "imageReference", "id")), Size: num(armLookup(s, "sku", "name")), Count: num(armLookup(s, "sku", "capacity")),
			Kind:     fmt.Sprintf("%v, %v, overprovision %v, repairs %v", p["orchestrationMode"], profile["priority"], p["overprovision"], armLookup(p, "automaticRepairsPolicy", "enabled")),
			Notice:   notice,
			Upgrades: fmt.Sprintf("%v, of the system %v", armLookup(p, "upgradePolicy", "mode"), armLookup(p, "upgradePolicy", "automaticOSUpgradePolicy", "enableAutomaticOSUpgrade")),
			Zones:    strs(s["zones"]), Subnet: subnet(ip), Public: num(armLookup(ip, "publicIPAddressConfiguration", "sku", "name")),
			Disk: fmt.Sprintf("%v, by the host %v", armLookup(profile, "storageProfile", "osDisk", "managedDisk", "storageAccountType"),
				armLookup(profile, "securityProfile", "encryptionAtHost")),
			Identity: who(s), UserData: data(profile["osProfile"]),
			Password: armLookup(profile, "osProfile", "linuxConfiguration", "disablePasswordAuthentication") != true,
		}
		var pools []string
		for _, in := range slices.Concat(list(ip, "applicationGatewayBackendAddressPools"), list(ip, "loadBalancerBackendAddressPools")) {
			id := num(in.(object)["id"])
			pools = append(pools, strings.TrimSuffix(id[strings.LastIndex(id[:strings.Index(id, ">")], "/")+1:strings.Index(id, ">")], ">")+"/"+last(id))
		}
		g.Pools = strings.Join(pools, " ")
		for k, v := range s["tags"].(object) {
			g.Tags = append(g.Tags, k+"="+num(v))
		}
		for _, sc := range a.of("Microsoft.Insights/autoscaleSettings") {
			sp := sc["properties"].(object)
			id := "<Microsoft.Compute/virtualMachineScaleSets/" + name + ">"
			if sp["targetResourceUri"] != id {
				continue
			}
			if sp["enabled"] != true || len(sp["profiles"].([]any)) != 1 {
				t.Errorf("%s does not scale: %v", name, sp)
			}
			one := sp["profiles"].([]any)[0].(object)
			capacity := one["capacity"].(object)
			g.Scaling = append(g.Scaling, fmt.Sprintf("%v to %v, %v by default", capacity["minimum"], capacity["maximum"], capacity["default"]))
			for _, rule := range one["rules"].([]any) {
				m, do := rule.(object)["metricTrigger"].(object), rule.(object)["scaleAction"].(object)
				if m["metricResourceUri"] != id || m["statistic"] != m["timeAggregation"] {
					t.Errorf("%s scales by %v", name, m)
				}
				g.Scaling = append(g.Scaling, fmt.Sprintf("%v of %v over %v %v %v: %v by %v, then %v", m["statistic"], m["metricName"], m["timeWindow"], m["operator"], m["threshold"],
					do["direction"], do["value"], do["cooldown"]))
			}
		}
		out.Groups[strings.TrimPrefix(name, "ams-")] = g
	}

	mongo := a.of("Microsoft.Compute/virtualMachines")["ams-mongo"]
	mp := mongo["properties"].(object)
	image := armLookup(mp, "storageProfile", "imageReference").(object)
	attached := list(mp, "storageProfile", "dataDisks")[0].(object)
	disk := a.resources[num(armLookup(attached, "managedDisk", "id"))]
	nic := a.resources[num(list(mp, "networkProfile", "networkInterfaces")[0].(object)["id"])]
	ip := a.named(armLookup(nic, "properties", "ipConfigurations"), "mongo")
	source := armLookup(disk, "properties", "creationData").(object)
	out.Mongo = azureMongo{
		Image: fmt.Sprintf("%v %v %v", image["publisher"], image["offer"], image["sku"]), Size: num(armLookup(mp, "hardwareProfile", "vmSize")), Subnet: subnet(ip),
		Address: fmt.Sprintf("%v %v", ip["privateIPAllocationMethod"], ip["privateIPAddress"]),
		Disk: fmt.Sprintf("%v %v at %v by %v", armLookup(disk, "sku", "name"), armLookup(disk, "properties", "diskSizeGB"), attached["lun"],
			armLookup(mp, "storageProfile", "diskControllerType")),
		Source: strings.TrimSpace(num(source["createOption"]) + " " + num(source["sourceResourceId"])), Survives: attached["deleteOption"] == "Detach",
		Password: armLookup(mp, "osProfile", "linuxConfiguration", "disablePasswordAuthentication") != true,
		Identity: who(mongo), UserData: data(mp["osProfile"]), ConnectionIsEmpty: len(a.of("Microsoft.KeyVault/vaults/secrets")) == 0,
	}
	return out
}

// TestAzureMongoScript runs the script of MongoDB's machine from where install.sh is
// there, with stand-ins for it and for curl: the connection string gets into the vault
// although the first answers are refusals, and no secret is on a command line or left.
func TestAzureMongoScript(t *testing.T) {
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("jq is not installed, which the script itself installs")
	}
	script := readAzure(t, loadAzure(t, object{"mongoRelease": "7.0", "mongoDatabases": "live,mine"})).Mongo.UserData
	_, end, ok := strings.Cut(script, "\nAMSAGENT-MONGODB\n")
	if !ok {
		t.Fatal("there is no end of install.sh")
	}
	const uri = "mongodb://amsagent:0123456789abcdef@10.42.1.10:27017/admin"
	here := t.TempDir()
	install := filepath.Join(here, "install.sh")
	end = strings.ReplaceAll(end, "/usr/local/sbin/amsagent-mongodb", install)
	put := "-fsS -X PUT -H @- -H Content-Type: application/json --data-binary"
	for name, body := range map[string]string{
		"install.sh": `echo "install.sh $*" >>"$HERE/calls"; echo preparing; echo "$HERE/uri"`,
		"apt-get":    `echo "apt-get" >>"$HERE/calls"`,
		"sleep":      `echo "sleep $*" >>"$HERE/calls"; [ "$(grep -c sleep "$HERE/calls")" -lt 4 ] || kill "$PPID"`,
		// First no token, then no right to write, then both.
		"curl": `echo "curl $*" >>"$HERE/calls"
case "$*" in
"-fsS --noproxy * -H Metadata: true ` + azureIdentityURL("ams-mongo") + `")
	[ -e "$HERE/asked" ] || { : >"$HERE/asked"; exit 22; }
	echo '{"access_token":"T0K3N"}' ;;
"` + put + ` @"*" -o /dev/null https://` + azureVaultHost + `/secrets/mongo?api-version=7.4")
	[ "$(cat)" = "Authorization: Bearer T0K3N" ] || exit 22
	[ -e "$HERE/refused" ] || { : >"$HERE/refused"; exit 22; }
	for file; do case $file in @/*) stat -c %a "${file#@}" >"$HERE/mode"; cat "${file#@}" >"$HERE/secret" ;; esac; done ;;
*) echo "unknown: $*" >&2; exit 2 ;;
esac`,
	} {
		must.OK(t, os.WriteFile(filepath.Join(here, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	}
	must.OK(t, os.WriteFile(filepath.Join(here, "uri"), []byte(uri+"\n"), 0o600))
	tmp := filepath.Join(here, "tmp")
	must.OK(t, os.Mkdir(tmp, 0o700))
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "set -e\n"+end)
	cmd.Env = append(os.Environ(), "HERE="+here, "PATH="+here+":"+os.Getenv("PATH"), "TMPDIR="+tmp)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(here, name))
		must.OK(t, err)
		return string(b)
	}
	var secret struct{ Value string }
	if err := json.Unmarshal([]byte(read("secret")), &secret); err != nil || secret.Value != uri {
		t.Errorf("the vault has %q (%v), want %q", read("secret"), err, uri)
	}
	if mode := read("mode"); mode != "600\n" {
		t.Errorf("the secret lay there with the mode %s", mode)
	}
	calls := read("calls")
	if strings.Contains(calls+string(out), "0123456789abcdef") || strings.Contains(calls+string(out), "T0K3N") {
		t.Errorf("a secret is on a command line, or was printed:\n%s%s", calls, out)
	}
	if !strings.Contains(calls, "install.sh --single --release 7.0 --databases live,mine --data-device /dev/disk/azure/scsi1/lun0\n") || strings.Count(calls, "sleep 15\n") != 2 {
		t.Errorf("called were\n%s", calls)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}
