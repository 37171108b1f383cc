// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// join --wait-for-tags waits until MongoDB and the role are known from any source. The join then fails, because there is no
// server below the root.
func TestWaitForTags(t *testing.T) {
	t.Parallel()
	const noServer = "AMS-INSTALL"
	off := metadataOfAWS(t, func() map[string]string { return nil })
	late := func(before, tags map[string]string) *httptest.Server {
		begin := sync.OnceValue(time.Now) // at the first request
		return metadataOfAWS(t, func() map[string]string {
			if time.Since(begin()) < time.Second {
				return before
			}
			return tags
		})
	}
	other := map[string]string{"Name": "edge-1"}
	for name, tt := range map[string]struct {
		server *httptest.Server
		// provider is aws if it is not given.
		provider    string
		args, stdin string
		code        int
		want        string
		quick       bool
	}{
		"tags that come late":           {server: late(other, map[string]string{"amsagent:mongo": "127.0.0.1:1", "amsagent:role": "edge"}), args: "--wait-for-tags 30s", code: codePreflight, want: noServer},
		"the role alone, with pipe":     {server: late(other, map[string]string{"amsagent:role": "edge"}), args: "--wait-for-tags 30s --mongo file:-", stdin: "127.0.0.1:1\n", code: codePreflight, want: noServer},
		"the role never comes":          {server: late(other, map[string]string{}), args: "--wait-for-tags 3s --mongo file:/mongo", code: codeUnknown, want: "the role: not known after 3s"},
		"nothing ever comes":            {server: late(other, map[string]string{}), args: "--wait-for-tags 3s", code: codeUnknown, want: "the address of MongoDB and the role: not known after 3s"},
		"all is known":                  {server: off, args: "--wait-for-tags 30s --mongo 127.0.0.1:1 --role edge", code: codePreflight, want: noServer, quick: true},
		"tags are switched off":         {server: off, args: "--wait-for-tags 3s --mongo mongodb://u:hunter22@127.0.0.1:1/", code: codeUnknown, want: "InstanceMetadataTags=enabled"},
		"no tag is there yet":           {server: late(nil, map[string]string{"amsagent:role": "edge"}), args: "--wait-for-tags 30s --mongo 127.0.0.1:1", code: codePreflight, want: noServer},
		"tags are switched on, too few": {server: late(nil, other), args: "--wait-for-tags 6s --mongo 127.0.0.1:1", code: codeUnknown, want: "hint: tag the machine with amsagent:mongo"},
		"a malformed tag":               {server: late(other, map[string]string{"amsagent:role": "two words"}), args: "--wait-for-tags 30s --mongo 127.0.0.1:1", code: codeUsage, want: "instance tag amsagent:role"},
		"no cloud":                      {server: off, provider: "generic", args: "--wait-for-tags 1s --role edge", code: codeUnknown, want: "hint: without a cloud's metadata no tags are known: give MongoDB's address,"},
		"offline":                       {server: off, args: "--wait-for-tags 30s --offline --mongo 127.0.0.1", code: codeUsage, want: "--offline", quick: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := &testEnv{stdin: strings.NewReader(tt.stdin), vars: map[string]string{
				"AMSAGENT_ROOT": tree(t, map[string]string{"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "mongo": "mongodb://u:hunter22@127.0.0.1:1/"}), "AMSAGENT_PROVIDER": cmp.Or(tt.provider, "aws"), "AMSAGENT_AWS_ENDPOINT": tt.server.URL, "AMSAGENT_TIMEOUT": "4s",
			}}
			code := Main(append([]string{"join"}, strings.Fields(tt.args)...), e.env())
			if said := e.stderr.String(); code != tt.code || !strings.Contains(said, tt.want) {
				t.Errorf("exit %d, want %d with %q\n%s", code, tt.code, tt.want, said)
			}
			// The address is read again and again.
			warned := strings.Count(e.stderr.String(), " can read the MongoDB password")
			must.Equal(t, "number of warnings", warned, strings.Count(tt.args, "file:/")+strings.Count(tt.args, "hunter22"))
			if waited := strings.Contains(e.stderr.String(), "waiting for the instance's tags"); waited == tt.quick {
				t.Errorf("it waited: %v\n%s", waited, e.stderr.String())
			}
		})
	}
}

// A command that needs MongoDB's address, and finds none, asks the cloud for the tag. If no tag could be read, the error has
// the reason.
func TestMongoByTag(t *testing.T) {
	t.Parallel()
	tagged := metadataOfAWS(t, func() map[string]string {
		return map[string]string{"amsagent:mongo": "127.0.0.1:1", "amsagent:role": "two words"} // a malformed one hides no other
	})
	off := metadataOfAWS(t, func() map[string]string { return nil })
	for _, args := range []string{"nodes", "nodes --watch", "nodes prune", "events", "balance --once", "drain i-1", "status --strict"} {
		for endpoint, all := range map[string][2]string{
			tagged.URL: {"MongoDB at 127.0.0.1:1 refused", "AMS-MONGO-REFUSED"}, off.URL: {"InstanceMetadataTags=enabled", "AMS-MONGO-MISSING"},
			"http://127.0.0.1:1": {"no instance tag could be read: ", "AGENT-METADATA-NOT-READY"},
		} {
			want, id := all[0], all[1]
			t.Run(args+want, func(t *testing.T) {
				t.Parallel()
				e := &testEnv{vars: map[string]string{"AMSAGENT_PROVIDER": "aws", "AMSAGENT_AWS_ENDPOINT": endpoint}}
				code := Main(strings.Fields(args+" -o json"), e.env())
				said := e.stdout.String() + e.stderr.String()
				if code == codeOK || !strings.Contains(said, want) || !strings.HasPrefix(args, "status") && !strings.Contains(said, `"id":"`+id+`"`) {
					t.Errorf("exit %d, want %q and %s\n%s", code, want, id, said)
				}
			})
		}
	}
}
