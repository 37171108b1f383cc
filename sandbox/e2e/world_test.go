// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/fakes/fakeazure"
)

// azure ADDRESS: starts Azure's metadata service for a machine with the private ADDRESS, at $AMSAGENT_AZURE_ENDPOINT.
func (w *world) vm(ts *testscript.TestScript, _ bool, args []string) error {
	vm := fakeazure.Sample()
	vm.NICs[0].IPv4s = []string{args[0]}
	var err error
	if w.azure, err = fakeazure.Start(w.ctx, fakeazure.Options{VM: &vm}); err != nil {
		return err
	}
	ts.Setenv("AMSAGENT_AZURE_ENDPOINT", w.azure.Endpoint())
	return nil
}

// imds start ADDRESS [tag=value…]: starts EC2's metadata service for a machine with the private ADDRESS and the tags, at
// $AMSAGENT_AWS_ENDPOINT.
// imds fault PATH STATUS|hang|truncate|reset [times]; imds clear; imds notags;
// imds tag KEY VALUE; imds expire; imds stop.
func (w *world) imds(ts *testscript.TestScript, _ bool, args []string) error {
	switch args[0] {
	case "start":
		i := fakeaws.Sample()
		i.NICs[0].IPv4s = []string{args[1]}
		for _, a := range args[2:] {
			k, v, _ := strings.Cut(a, "=")
			i.Tags[k] = v
		}
		var err error
		w.aws, err = fakeaws.Start(w.ctx, fakeaws.Options{Instance: &i})
		if err != nil {
			return err
		}
		ts.Setenv("AMSAGENT_AWS_ENDPOINT", w.aws.Endpoint())
	case "fault":
		q := url.Values{"path": {args[1]}, args[2]: {"true"}}
		if _, err := strconv.Atoi(args[2]); err == nil {
			q = url.Values{"path": {args[1]}, "status": {args[2]}}
		}
		if len(args) > 3 {
			q.Set("times", args[3])
		}
		return w.aws.Verbs().Run("POST /fault", q)
	case "clear":
		return w.aws.Verbs().Run("DELETE /fault", nil)
	case "expire":
		return w.aws.Verbs().Run("POST /expire-tokens", nil)
	case "notags":
		w.aws.Update(func(i *fakeaws.Instance) { i.TagsEnabled = false })
	case "tag":
		w.aws.Update(func(i *fakeaws.Instance) {
			i.TagsEnabled = true
			i.Tags[args[1]] = args[2]
		})
	case "stop":
		return w.aws.Close()
	default:
		return fmt.Errorf("imds %s is not known", args[0])
	}
	return nil
}
