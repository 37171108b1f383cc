// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

func TestOpen(t *testing.T) {
	for _, name := range metadata.Names() {
		p, err := metadata.Open(name, metadata.Options{Root: t.TempDir()})
		if err != nil || p == nil || p.Name() != name {
			t.Errorf("Open(%s) = %v, %v", name, p, err)
		}
	}
	p, err := metadata.Open("aws ", metadata.Options{})
	if !errors.Is(err, metadata.ErrUnknownProvider) || p != nil || !strings.Contains(err.Error(), "aws, azure, alibaba, gcp, generic") {
		t.Errorf("Open(\"aws \") = %v, %v", p, err)
	}
	// A nil pointer in an interface is not nil.
	if p, err := metadata.Open("aws", metadata.Options{Endpoints: map[string]string{"aws": "nonsense"}}); err == nil || p != nil {
		t.Errorf("Open with a bad endpoint = %v, %v", p, err)
	}
}

func TestLookup(t *testing.T) {
	for _, tt := range []struct {
		tags map[string]string
		want string
		ok   bool
	}{
		{nil, "", false},
		{map[string]string{"role": "edge"}, "", false},
		{map[string]string{"amsagent:role": "edge"}, "edge", true},
		{map[string]string{"amsagent-role": "origin"}, "origin", true},
		{map[string]string{"amsagent:role": "edge", "amsagent-role": "origin"}, "edge", true},
		{map[string]string{"amsagent:role": " ", "amsagent-role": " origin\t"}, "origin", true},
		{map[string]string{"AMSAGENT:ROLE": "edge"}, "", false},
	} {
		if got, ok := metadata.Lookup(tt.tags, "amsagent:role", "amsagent-role"); got != tt.want || ok != tt.ok {
			t.Errorf("Lookup(%v) = %q, %v, want %q, %v", tt.tags, got, ok, tt.want, tt.ok)
		}
	}
	// The type of Instance's tags goes in without a conversion.
	if v, ok := metadata.Lookup(metadata.Tags{"my-role": "x"}, "our:role", "my-role"); v != "x" || !ok {
		t.Errorf("Lookup() = %q, %v", v, ok)
	}
}

// The whole story on a machine that says by its firmware that it is EC2.
func TestDetectOpenInstance(t *testing.T) {
	opts := metadata.Options{
		Root: tree(t, dmi("board_asset_tag=i-0abc1234567890def")), Endpoints: map[string]string{"aws": fakeAWS(t)},
	}
	d, err := metadata.Detect(t.Context(), opts)
	must.OK(t, err)
	p, err := metadata.Open(d.Provider, opts)
	must.OK(t, err)
	inst, err := p.Instance(t.Context())
	must.OK(t, err)
	role, _ := metadata.Lookup(inst.Tags, "amsagent:role", "amsagent-role")
	if inst.ID != "i-0abc1234567890def" || inst.Address != netip.MustParseAddr("10.0.1.23") || role != "edge" || inst.Group != "edge-asg" {
		t.Errorf("instance: %+v", inst)
	}
}

// Each package says what it is and that its API may change, and each file whose it is.
func TestHouseRules(t *testing.T) {
	for _, dir := range []string{".", "cloud", "aws", "azure", "alibaba", "gcp", "generic", "metadatatest"} {
		b, err := os.ReadFile(dir + "/doc.go")
		if err != nil {
			t.Error(err)
			continue
		}
		if !strings.Contains(string(b), "not stable yet") {
			t.Errorf("%s/doc.go does not say that the API is not stable yet", dir)
		}
		files, err := os.ReadDir(dir)
		must.OK(t, err)
		for _, f := range files {
			if !strings.HasSuffix(f.Name(), ".go") {
				continue
			}
			b, err := os.ReadFile(dir + "/" + f.Name())
			must.OK(t, err)
			if !strings.HasPrefix(string(b), "// Copyright The amsagent Authors\n// SPDX-License-Identifier: Apache-2.0\n\n") {
				t.Errorf("%s/%s has no licence header", dir, f.Name())
			}
		}
	}
}

func BenchmarkDetect(b *testing.B) {
	opts := metadata.Options{Root: tree(b, dmi("sys_vendor=Amazon EC2", "product_name=c7i.2xlarge", "board_asset_tag=i-0abc1234567890def",
		"chassis_asset_tag=Amazon EC2", "product_uuid="+xenUUID)), NoNetwork: true}
	for b.Loop() {
		if d, err := metadata.Detect(b.Context(), opts); err != nil || d.Provider != "aws" {
			b.Fatalf("%+v, %v", d, err)
		}
	}
}

// What a machine in no cloud pays for the files alone.
func BenchmarkDetectGeneric(b *testing.B) {
	opts := metadata.Options{Root: tree(b, dmi("sys_vendor=Dell Inc.", "product_name=PowerEdge R640")), NoNetwork: true}
	for b.Loop() {
		if d, err := metadata.Detect(b.Context(), opts); err != nil || d.Provider != "generic" {
			b.Fatalf("%+v, %v", d, err)
		}
	}
}

// Detection and identity from nothing against a healthy service, with the tags of a usual instance and with the most that
// AWS allows. The service answers after the milliseconds that a real one needs.
func BenchmarkDetectAndIdentity(b *testing.B) {
	for _, bench := range []struct {
		name string
		tags int
		wait time.Duration
	}{
		{"3tags", 3, 0}, {"50tags", 50, 0}, {"3tags_2ms_service", 3, 2 * time.Millisecond}, {"50tags_2ms_service", 50, 2 * time.Millisecond},
	} {
		b.Run(bench.name, func(b *testing.B) {
			bodies := awsBodies()
			keys := []string{"Name", "amsagent:role", "aws:autoscaling:groupName"}
			for i := len(keys); i < bench.tags; i++ {
				key := fmt.Sprintf("tag-%d", i)
				keys = append(keys, key)
				bodies["/latest/meta-data/tags/instance/"+key] = "value"
			}
			bodies["/latest/meta-data/tags/instance"] = strings.Join(keys, "\n")
			f := metadatatest.NewFake(b, awsService(), bodies)
			f.Delay(bench.wait)
			opts := metadata.Options{Root: tree(b, dmi("board_asset_tag=i-0abc1234567890def")), Endpoints: map[string]string{"aws": f.URL()}}
			n := 0
			for b.Loop() {
				n++
				d, err := metadata.Detect(b.Context(), opts)
				must.OK(b, err)
				p, err := metadata.Open(d.Provider, opts)
				must.OK(b, err)
				inst, err := p.Instance(b.Context())
				if err != nil || len(inst.Tags) != bench.tags {
					b.Fatalf("%+v, %v", inst, err)
				}
			}
			seen := f.Seen()
			b.ReportMetric(float64(len(seen))/float64(n), "requests/op")
			b.ReportMetric(b.Elapsed().Seconds()*1000/float64(n), "ms/op")
			// Nothing is asked twice.
			once := map[string]int{}
			for _, s := range seen {
				once[s.Method+" "+s.Path]++
			}
			for what, c := range once {
				if c != n {
					b.Errorf("%s was asked %d times in %d readings", what, c, n)
				}
			}
			if !slices.ContainsFunc(seen, func(s metadatatest.Seen) bool { return s.Path == document }) {
				b.Error("the identity document was not read")
			}
		})
	}
}
