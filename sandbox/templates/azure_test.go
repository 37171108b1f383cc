// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

const azureBicep = "../../packaging/cloud/azure/main.bicep"

const azureVaultHost = "ams-unique0000000.vault.azure.net"

func azureIdentityURL(name string) string {
	return "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net&client_id=" + name
}

// azureFacts: rules go by networks, the gateway's balancers end at the agent's readiness, a node that goes has a quarter of an
// hour of notice, and each identity has one right to one vault.
var azureFacts = facts{
	says: map[string]string{
		"nobodyElse": `
			priority: 4096
			direction: 'Inbound'
			access: 'Deny'
			protocol: '*'
			sourceAddressPrefix: '*'
			destinationPortRanges: ['0-65535']`,
		"gatewayGroup mongoGroup": `securityRules: [
			nobodyElse`,
		"originGroup": `securityRules: concat(nodeRules, [
			nobodyElse`,
		"edgeGroup": `securityRules: concat(nodeRules, [nobodyElse])`,
		"network": `
			properties: { addressPrefix: '10.42.0.0/24', networkSecurityGroup: { id: gatewayGroup.id } }
			addressPrefix: '10.42.1.0/24'
			networkSecurityGroup: { id: mongoGroup.id }
			serviceEndpoints: [{ service: 'Microsoft.KeyVault' }]
			addressPrefix: '10.42.4.0/22'
			networkSecurityGroup: { id: originGroup.id }
			serviceEndpoints: [{ service: 'Microsoft.KeyVault' }]
			addressPrefix: '10.42.8.0/22'
			networkSecurityGroup: { id: edgeGroup.id }
			serviceEndpoints: [{ service: 'Microsoft.KeyVault' }]`,
		"gateway": `
			{ name: 'public', properties: { publicIPAddress: { id: gatewayAddress.id } } }
			{ name: 'http', properties: { port: 80 } }
			{ name: 'https', properties: { port: 443 } }
			{ name: 'edge-http', properties: { port: 5080 } }
			{ name: 'edge-https', properties: { port: 5443 } }
			sslCertificates: withTls ? [{ name: 'media', properties: { data: certificate, password: certificatePassword } }] : []
			protocol: 'Http'
			port: 9771
			path: '/readyz'
			interval: 10
			unhealthyThreshold: 2
			match: { statusCodes: ['200'] }
			protocol: 'Http'
			port: 5080
			cookieBasedAffinity: 'Enabled'
			connectionDraining: { enabled: true, drainTimeoutInSec: drainSeconds }
			probe: { id: '${gatewayId}/probes/ready' }
			], withTls ? [
			] : [])
			], withTls ? [
			] : [])`,
		"drainSeconds": `param drainSeconds int = 3600`,
		"upgradeMode":  `param upgradeMode string = 'Manual'`,
		"upgrades": `
			mode: upgradeMode
			automaticOSUpgradePolicy: { enableAutomaticOSUpgrade: false }
			rollingUpgradePolicy: { maxSurge: true }`,
		"health": `
			publisher: 'Microsoft.ManagedServices'
			type: 'ApplicationHealthLinux'
			typeHandlerVersion: '2.0'
			protocol: 'http'
			port: 9771
			requestPath: '/application-health'
			intervalInSeconds: 10
			numberOfProbes: 6
			gracePeriod: 600`,
		"rtmp": `
			sku: { name: 'Standard' }
			properties: { protocol: 'Http', port: 9771, requestPath: '/readyz', intervalInSeconds: 10, probeThreshold: 2 }
			protocol: 'Tcp'
			frontendPort: 1935
			backendPort: 1935
			backendAddressPool: { id: '${rtmpId}/backendAddressPools/origin' }
			probe: { id: '${rtmpId}/probes/ready' }`,
		"vault": `
			enableRbacAuthorization: false
			defaultAction: 'Deny'
			bypass: 'None'
			{ id: '${network.id}/subnets/mongo' }
			{ id: '${network.id}/subnets/origin' }
			{ id: '${network.id}/subnets/edge' }
			]`,
		"mongoInterface": `
			subnet: { id: '${network.id}/subnets/mongo' }
			privateIPAllocationMethod: 'Static'
			privateIPAddress: mongoIp`,
		"mongoDisk": `
			creationData: empty(mongoSnapshot) ? { createOption: 'Empty' } : { createOption: 'Copy', sourceResourceId: mongoSnapshot }
			networkAccessPolicy: 'DenyAll'`,
		"mongo": `
			identity: { type: 'UserAssigned', userAssignedIdentities: { '${mongoIdentity.id}': {} } }
			networkProfile: { networkInterfaces: [{ id: mongoInterface.id }] }
			imageReference: { publisher: 'Debian', offer: 'debian-12', sku: '12-gen2', version: 'latest' }
			diskControllerType: 'SCSI'
			dataDisks: [{ lun: 0, createOption: 'Attach', managedDisk: { id: mongoDisk.id }, deleteOption: 'Detach' }]
			disablePasswordAuthentication: true
			dependsOn: [vault]`,
		"originSet edgeSet": `
			zones: zones
			tags: { 'amsagent-role': '{role}' }
			sku: { name: {role}Size, tier: 'Standard', capacity: {role}Count }
			identity: { type: 'UserAssigned', userAssignedIdentities: { '${{role}Identity.id}': {} } }
			orchestrationMode: 'Uniform'
			overprovision: false
			upgradePolicy: upgrades
			automaticRepairsPolicy: { enabled: false }
			priority: 'Regular'
			scheduledEventsProfile: { terminateNotificationProfile: { enable: true, notBeforeTimeout: 'PT15M' } }
			extensionProfile: { extensions: [health] }
			imageReference: { id: nodeImage }
			disablePasswordAuthentication: true
			subnet: { id: '${network.id}/subnets/{role}' }
			publicIPAddressConfiguration: {
			applicationGatewayBackendAddressPools: [{ id: '${gatewayId}/backendAddressPools/{role}' }]`,
		"originSet": `
			loadBalancerBackendAddressPools: [{ id: '${rtmpId}/backendAddressPools/origin' }]
			dependsOn: [gateway, rtmp, vault, mongo]`,
		"edgeSet":               `dependsOn: [gateway, vault, mongo]`,
		"originMin edgeMin":     `param {role}Min int = 1`,
		"originMax edgeMax":     `param {role}Max int = 10`,
		"originCount edgeCount": `param {role}Count int = {role}Min`,
		"originScaling edgeScaling": `
			enabled: true
			targetResourceUri: {role}Set.id
			capacity: { minimum: string({role}Min), maximum: string({role}Max), default: string({role}Min) }
			metricName: 'Percentage CPU'
			metricResourceUri: {role}Set.id
			timeWindow: 'PT5M'
			operator: 'GreaterThan'
			threshold: 60
			scaleAction: { direction: 'Increase', type: 'ChangeCount', value: '1', cooldown: 'PT5M' }
			metricName: 'Percentage CPU'
			metricResourceUri: {role}Set.id
			timeWindow: 'PT5M'
			operator: 'LessThan'
			threshold: 60
			scaleAction: { direction: 'Decrease', type: 'ChangeCount', value: '1', cooldown: 'PT5M' }`,
	},
	lists: map[string]string{
		`^(?:resource|var) (\w+Group|nodeRules) |^access: 'Allow'\nprotocol: (.+)\nsourceAddressPrefix(?:es)?: (.+)\nsourcePortRange: '\*'\ndestinationAddressPrefix: '\*'\ndestinationPortRanges: (.+)`: `
			nodeRules
			'Tcp' '10.42.0.0/24' ['5080', '9771']
			'Tcp' ['10.42.4.0/22', '10.42.8.0/22'] ['5000', '5080']
			'Udp' viewerSource ['50000-60000']
			gatewayGroup
			'Tcp' viewerSource ['80', '443', '5080', '5443']
			'Tcp' 'GatewayManager' ['65200-65535']
			'*' 'AzureLoadBalancer' ['0-65535']
			originGroup
			'Tcp' publisherSource ['1935']
			'Tcp' 'AzureLoadBalancer' ['9771']
			edgeGroup
			mongoGroup
			'Tcp' ['10.42.4.0/22', '10.42.8.0/22'] ['27017']`,
		`^(access): 'Allow'`: strings.Repeat("access\n", 9),
		`^httpListener: \{ id: '\$\{gatewayId\}/httpListeners/(.+)' \}\nbackendAddressPool: \{ id: '\$\{gatewayId\}/backendAddressPools/(.+)' \}`: `
			http origin
			edge-http edge
			https origin
			edge-https edge`,
		`^protocol: '(Https?)'\nfrontendIP.+\nfrontendPort: \{ id: '\$\{gatewayId\}/frontendPorts/(.+)' \}(?:\n(sslCertificate): \{ id: '\$\{gatewayId\}/sslCertificates/media' \})?`: `
			Http http
			Http edge-http
			Https https sslCertificate
			Https edge-https sslCertificate`,
		`^objectId: (\w+)\.properties\.principalId\npermissions: (.+)`: `
			originIdentity { secrets: ['get'] }
			edgeIdentity { secrets: ['get'] }
			mongoIdentity { secrets: ['set'] }`,
		`^(permissions|identity): |(Microsoft\.(?:Authorization|KeyVault)[\w/]*)@`: `
			Microsoft.KeyVault/vaults
			permissions
			permissions
			permissions
			identity
			identity
			identity`,
		// The certificate and its password are where they are needed, and in no output.
		`^([^@\n].*\bcertificate(?:Password)?\b(?:[^'].*)?)$|^@(secure)`: `
			secure
			param certificate string = ''
			secure
			param certificatePassword string = ''
			var withTls = !empty(certificate)
			sslCertificates: withTls ? [{ name: 'media', properties: { data: certificate, password: certificatePassword } }] : []`,
		`replace\(loadTextContent\('(.+?)'\), (.+)`: `
			mongo.sh.tmpl '{{release}}', mongoRelease), '{{databases}}', mongoDatabases), '{{vaults}}', vaultResource), '{{vault}}', vaultHost), '{{identity}}', mongoIdentity.properties.clientId), '{{install}}', loadTextContent('../../image/mongodb/install.sh')))
			node.sh.tmpl '{{vaults}}', vaultResource), '{{vault}}', vaultHost), '{{identity}}', originIdentity.properties.clientId))
			node.sh.tmpl '{{vaults}}', vaultResource), '{{vault}}', vaultHost), '{{identity}}', edgeIdentity.properties.clientId))`,
	},
}

func TestAzure(t *testing.T) {
	s := read(t, azureBicep)
	s.check(t, azureFacts)
	// Names, but for keys, properties, functions and what is in quotes.
	code := regexp.MustCompile(`'[^']*'`).ReplaceAllStringFunc(strings.ReplaceAll(s.text, `\'`, ""), func(quoted string) string {
		return strings.Join(regexp.MustCompile(`\$\{[^}]*\}`).FindAllString(quoted, -1), " ")
	})
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^(?:@.*|(?:param|var|resource|output) \w+( \w+)?)|\.\w+|\w+[:(]|([A-Za-z]\w*)`).FindAllStringSubmatch(code, -1) {
		if m[2] != "" && m[2] != "true" && m[2] != "false" {
			names = append(names, m[2])
		}
	}
	declared := slices.DeleteFunc(s.finds(`^(?:param|var|resource) (\w+)`), func(name string) bool {
		return strings.HasSuffix(name, "Scaling") // which nothing has to name
	})
	used(t, declared, names)
}

// azureNode is the custom data of a node.
func azureNode(t *testing.T, role string) string {
	t.Helper()
	return filled(t, contents(t, "../../packaging/cloud/azure/node.sh.tmpl"), "{{", "}}", map[string]string{
		"vaults": "vault.azure.net", "vault": azureVaultHost, "identity": "ams-" + role,
	})
}

// azureMongo is the custom data of MongoDB's machine.
func azureMongo(t *testing.T) string {
	t.Helper()
	return filled(t, contents(t, "../../packaging/cloud/azure/mongo.sh.tmpl"), "{{", "}}", map[string]string{
		"vaults": "vault.azure.net", "vault": azureVaultHost, "identity": "ams-mongo", "release": "7.0", "databases": "live,mine", "install": contents(t, install),
	})
}

// TestAzureMongoScript runs the script of MongoDB's machine from where install.sh is
// there, with stand-ins for it and for curl: the connection string gets into the vault
// although the first answers are refusals, and no secret is on a command line or left.
func TestAzureMongoScript(t *testing.T) {
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("jq is not installed, which the script itself installs")
	}
	_, end, ok := strings.Cut(azureMongo(t), "\nAMSAGENT-MONGODB\n")
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
