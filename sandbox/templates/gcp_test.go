// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/zclconf/go-cty/cty"
)

const gcpTerraform = "../../packaging/cloud/gcp/terraform"

// gcpCluster is what the module makes on Google Cloud, in the words of this test.
type gcpCluster struct {
	// Listeners: port, protocol, to whom, by which proxies.
	Listeners []string
	Backends  map[string]string
	Rules     []string
	Groups    map[string]gcpGroup
	// Rights: who may do what with what; nothing else is given.
	Rights []string
	Mongo  gcpMongo
}

type gcpGroup struct {
	Image, Type, NamedPort, Heals, Update, Scaling, Kind, Identity string
	Public                                                         bool
	Role, UserData                                                 string
	After                                                          []string
}

type gcpMongo struct {
	Image, Identity, Disk, Address string
	Survives, Public               bool
	ConnectionIsEmpty              bool
}

func wantGCP() gcpCluster {
	ready := "HTTP 9771 /readyz, every 10 s, 2 up, 2 down"
	group := func(role string) gcpGroup {
		return gcpGroup{
			Image: "image-node", Type: "n2-standard-4", NamedPort: "ams 5080", Heals: "HTTP 9771 /healthz, after 600 s", Update: "OPPORTUNISTIC",
			Scaling: "1 to 10, CPU 0.6, ON", Kind: "STANDARD, not preemptible, secure boot", Identity: role, Public: true, Role: role,
			UserData: "#!/bin/sh\nuntil gcloud secrets versions access latest --project PROJECT --secret SECRET" +
				" | amsagent join --mongo file:-; do [ $? = 2 ] && exit 2; sleep 15; done\n",
			After: []string{"mongo"},
		}
	}
	return gcpCluster{
		Listeners: []string{"1935 TCP rtmp", "443 HTTPS origin", "5080 HTTP edge", "5443 HTTPS edge", "80 HTTP origin"},
		Backends: map[string]string{
			"origin": "HTTP ams of origin, " + ready + ", draining 3600 s, cookie GENERATED_COOKIE",
			"edge":   "HTTP ams of edge, " + ready + ", draining 3600 s, cookie GENERATED_COOKIE",
			"rtmp":   "TCP of origin, " + ready + ", draining 3600 s, affinity NONE",
		},
		Rules: []string{
			"edge tcp 5000 from edge", "edge tcp 5000 from origin", "edge tcp 5080 from balancers", "edge tcp 5080 from edge", "edge tcp 5080 from origin",
			"edge tcp 9771 from balancers", "edge udp 50000-60000 from viewers",
			"mongo tcp 27017 from edge", "mongo tcp 27017 from origin",
			"origin tcp 1935 from publishers",
			"origin tcp 5000 from edge", "origin tcp 5000 from origin", "origin tcp 5080 from balancers", "origin tcp 5080 from edge", "origin tcp 5080 from origin",
			"origin tcp 9771 from balancers", "origin tcp 9771 from checks", "origin udp 50000-60000 from viewers",
		},
		Groups: map[string]gcpGroup{"origin": group("origin"), "edge": group("edge")},
		Rights: []string{
			"edge roles/secretmanager.secretAccessor on SECRET", "mongo roles/secretmanager.secretVersionAdder on SECRET",
			"origin roles/secretmanager.secretAccessor on SECRET",
		},
		Mongo: gcpMongo{
			Image: "debian-cloud/debian-12", Identity: "mongo", Disk: "pd-ssd 50 as mongo", Address: "INTERNAL", Survives: true, Public: true, ConnectionIsEmpty: true,
		},
	}
}

func loadGCP(t *testing.T) *terraform {
	t.Helper()
	return evaluate(t, gcpTerraform, map[string]cty.Value{
		"project": cty.StringVal("acme"), "region": cty.StringVal("europe-west1"), "zone": cty.StringVal("europe-west1-b"),
		"node_image": cty.StringVal("image-node"), "certificate": cty.StringVal("projects/acme/global/sslCertificates/x"),
		"viewer_cidr": cty.StringVal("198.51.100.0/24"), "publisher_cidr": cty.StringVal("203.0.113.0/24"),
	})
}

func TestGCPTerraform(t *testing.T) {
	if diff := gocmp.Diff(wantGCP(), readGCP(t, loadGCP(t))); diff != "" {
		t.Errorf("the module makes something else than wanted (-want +got):\n%s", diff)
	}
}

// TestGCPGivesNoOtherRight: the agent needs none on Google Cloud, so no type of
// resource that gives rights may come in without a look at this test.
func TestGCPGivesNoOtherRight(t *testing.T) {
	for address := range loadGCP(t).resources {
		typ, _, _ := strings.Cut(address, ".")
		if strings.Contains(typ, "_iam_") && typ != "google_secret_manager_secret_iam_member" {
			t.Errorf("%s gives a right", address)
		}
	}
}

var keyed = regexp.MustCompile(`\w+\.(\w+)(?:\["([\w-]+)"\])?`)

// key is the key of a resource with for_each, or the name of one without.
func key(v any) string {
	m := keyed.FindStringSubmatch(num(v))
	if m == nil {
		return num(v)
	}
	if m[2] != "" {
		return m[2]
	}
	return m[1]
}

func readGCP(t *testing.T, m *terraform) gcpCluster {
	t.Helper()
	out := gcpCluster{Backends: map[string]string{}, Groups: map[string]gcpGroup{}}
	resource := func(reference any, suffix string) object {
		r, ok := m.resources[strings.TrimSuffix(num(reference), suffix)]
		if !ok {
			t.Errorf("%v is no reference to a resource", reference)
		}
		return r
	}
	check := func(reference any) string {
		h := resource(strs(reference)[0], ".id")
		p := m.one(h, "http_health_check")
		return fmt.Sprintf("HTTP %v %v, every %v s, %v up, %v down", p["port"], p["request_path"], h["check_interval_sec"], h["healthy_threshold"], h["unhealthy_threshold"])
	}
	// A listener is followed through proxy and map to its backend.
	for _, r := range m.of("google_compute_global_forwarding_rule") {
		proxy := resource(r["target"], ".id")
		backend := resource(proxy["url_map"], ".id")["default_service"]
		protocol := "HTTP"
		if strings.HasPrefix(num(r["target"]), "google_compute_target_https_proxy") {
			protocol = "HTTPS"
			if !slices.Equal(strs(proxy["ssl_certificates"]), []string{"projects/acme/global/sslCertificates/x"}) {
				t.Errorf("the certificates of %v are %v", r["port_range"], proxy["ssl_certificates"])
			}
		}
		out.Listeners = append(out.Listeners, fmt.Sprintf("%v %s %s", r["port_range"], protocol, key(backend)))
		// Classic balancers know few ports, and both ends have to be of one kind.
		if b := resource(backend, ".id"); r["load_balancing_scheme"] != "EXTERNAL_MANAGED" || b["load_balancing_scheme"] != "EXTERNAL_MANAGED" {
			t.Errorf("%v: %v to %v", r["port_range"], r["load_balancing_scheme"], b["load_balancing_scheme"])
		}
	}
	for _, r := range m.of("google_compute_forwarding_rule") {
		for _, p := range strs(r["ports"]) {
			out.Listeners = append(out.Listeners, fmt.Sprintf("%s %v %s", p, r["ip_protocol"], key(r["backend_service"])))
		}
	}
	slices.Sort(out.Listeners)
	group := func(b object) string {
		return key(strings.TrimSuffix(num(m.one(b, "backend")["group"]), ".instance_group"))
	}
	for name, b := range m.of("google_compute_backend_service") {
		out.Backends[key("x."+name)] = fmt.Sprintf("%v %v of %s, %s, draining %v s, cookie %v", b["protocol"], b["port_name"], group(b), check(b["health_checks"]),
			b["connection_draining_timeout_sec"], b["session_affinity"])
		if b["timeout_sec"] != float64(86400) {
			t.Errorf("%s cuts a WebSocket after %v s", name, b["timeout_sec"])
		}
	}
	for name, b := range m.of("google_compute_region_backend_service") {
		out.Backends[name] = fmt.Sprintf("%v of %s, %s, draining %v s, affinity %v", b["protocol"], group(b), check(b["health_checks"]), b["connection_draining_timeout_sec"],
			b["session_affinity"])
	}
	account := func(v any) string { return key(strings.TrimSuffix(num(v), ".email")) }
	for name, f := range m.of("google_compute_firewall") {
		var from []string
		switch ranges := strings.Join(strs(f["source_ranges"]), " "); ranges {
		case "":
		case "130.211.0.0/22 35.191.0.0/16":
			from = []string{"balancers"}
		case "130.211.0.0/22 35.191.0.0/16 209.85.152.0/22 209.85.204.0/22":
			from = []string{"checks"}
		default:
			from = []string{who(ranges)}
		}
		for _, a := range strs(f["source_service_accounts"]) {
			from = append(from, account(a))
		}
		if f["direction"] != "INGRESS" || len(from) == 0 || len(strs(f["target_service_accounts"])) == 0 {
			t.Errorf("%s is open: %v", name, f)
		}
		for _, to := range strs(f["target_service_accounts"]) {
			for _, source := range from {
				for _, p := range strs(m.one(f, "allow")["ports"]) {
					out.Rules = append(out.Rules, fmt.Sprintf("%s %v %s from %s", account(to), m.one(f, "allow")["protocol"], p, source))
				}
			}
		}
	}
	slices.Sort(out.Rules)
	for _, r := range m.of("google_secret_manager_secret_iam_member") {
		member := account(strings.TrimPrefix(num(r["member"]), "serviceAccount:"))
		on := num(r["secret_id"])
		if on == "google_secret_manager_secret.mongo.id" {
			on = "SECRET"
		}
		out.Rights = append(out.Rights, fmt.Sprintf("%s %v on %s", member, r["role"], on))
	}
	slices.Sort(out.Rights)
	words := strings.NewReplacer("--project acme", "--project PROJECT", "google_secret_manager_secret.mongo.secret_id", "SECRET")
	public := func(o object) bool {
		n := m.one(o, "network_interface")
		list, _ := n["access_config"].([]any)
		return len(list) == 1
	}
	for name, g := range m.of("google_compute_region_instance_group_manager") {
		d := resource(m.one(g, "version")["instance_template"], ".id")
		port, heal := m.one(g, "named_port"), m.one(g, "auto_healing_policies")
		alive := m.one(resource(heal["health_check"], ".id"), "http_health_check")
		scheduling, boot := m.one(d, "scheduling"), m.one(d, "shielded_instance_config")
		metadata := d["metadata"].(object)
		kind := num(scheduling["provisioning_model"])
		if scheduling["preemptible"] == false {
			kind += ", not preemptible"
		}
		if boot["enable_secure_boot"] == true {
			kind += ", secure boot"
		}
		gg := gcpGroup{
			Image: num(m.one(d, "disk")["source_image"]), Type: num(d["machine_type"]), NamedPort: fmt.Sprintf("%v %v", port["name"], port["port"]),
			Heals: fmt.Sprintf("HTTP %v %v, after %v s", alive["port"], alive["request_path"], heal["initial_delay_sec"]),
			Kind:  kind, Identity: account(m.one(d, "service_account")["email"]), Public: public(d), Role: num(metadata["amsagent-role"]),
			UserData: words.Replace(num(metadata["startup-script"])), Update: num(m.one(g, "update_policy")["type"]),
		}
		for _, a := range m.of("google_compute_region_autoscaler") {
			if num(a["target"]) == "google_compute_region_instance_group_manager."+name+".id" {
				p := m.one(a, "autoscaling_policy")
				if p["scale_in_control"] != nil {
					t.Errorf("%s does not scale in freely", name)
				}
				gg.Scaling += fmt.Sprintf("%v to %v, CPU %v, %v", p["min_replicas"], p["max_replicas"], m.one(p, "cpu_utilization")["target"], p["mode"])
			}
		}
		for _, on := range g["depends_on"].([]any) {
			if o, ok := on.(object); ok && o["id"] == "google_compute_instance.mongo.id" {
				gg.After = append(gg.After, "mongo")
			}
		}
		out.Groups[key("x."+name)] = gg
	}
	i := m.resources["google_compute_instance.mongo"]
	disk, attached := m.resources["google_compute_disk.mongo"], m.one(i, "attached_disk")
	if attached["source"] != "google_compute_disk.mongo.id" {
		t.Errorf("the disk of MongoDB is %v", attached["source"])
	}
	out.Mongo = gcpMongo{
		Image: num(m.one(m.one(i, "boot_disk"), "initialize_params")["image"]), Identity: account(m.one(i, "service_account")["email"]),
		Disk:    fmt.Sprintf("%v %v as %v", disk["type"], disk["size"], attached["device_name"]),
		Address: num(resource(m.one(i, "network_interface")["network_ip"], ".address")["address_type"]), Public: public(i),
		Survives: disk["create_snapshot_before_destroy"] == true, ConnectionIsEmpty: len(m.of("google_secret_manager_secret_version")) == 0,
	}
	return out
}

// gcpMongoScript is the startup script of MongoDB's machine.
func gcpMongoScript(t *testing.T) string {
	t.Helper()
	metadata, ok := loadGCP(t).resources["google_compute_instance.mongo"]["metadata"].(object)
	if !ok {
		t.Fatal("no metadata")
	}
	return num(metadata["startup-script"])
}
