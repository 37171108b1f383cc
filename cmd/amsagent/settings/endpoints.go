// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/aws"
)

// Endpoint is a service of a cloud. Only an environment variable replaces its address, for tests and a few networks.
type Endpoint struct {
	Name, Env string
	// AlsoEnv are variables of the cloud's own SDK, which count after Env.
	AlsoEnv []string
}

// Endpoints returns the addresses that variables change.
func Endpoints() []Endpoint {
	return []Endpoint{
		{metadata.AWS, "AMSAGENT_AWS_ENDPOINT", []string{"AWS_EC2_METADATA_SERVICE_ENDPOINT"}},
		{aws.EndpointAutoScaling, "AMSAGENT_AWS_AUTOSCALING_ENDPOINT", []string{"AWS_ENDPOINT_URL_AUTO_SCALING", "AWS_ENDPOINT_URL"}},
		{metadata.Azure, "AMSAGENT_AZURE_ENDPOINT", nil},
		{metadata.Alibaba, "AMSAGENT_ALIBABA_ENDPOINT", nil},
		{alibaba.EndpointESS, "AMSAGENT_ALIBABA_ESS_ENDPOINT", nil},
		{alibaba.EndpointECS, "AMSAGENT_ALIBABA_ECS_ENDPOINT", nil},
		{metadata.GCP, "AMSAGENT_GCP_ENDPOINT", nil},
	}
}

// Variable returns the first variable that is set and not empty, or "".
func (e Endpoint) Variable(getenv func(string) string) (name, text string) {
	for _, name := range append([]string{e.Env}, e.AlsoEnv...) {
		if text := getenv(name); text != "" {
			return name, text
		}
	}
	return "", ""
}

// readEndpoints returns the endpoints that the environment names.
func readEndpoints(getenv func(string) string) (map[string]string, []error) {
	found := map[string]string{}
	var errs []error
	for _, e := range Endpoints() {
		name, text := e.Variable(getenv)
		if name == "" {
			continue
		}
		origin, err := checkOrigin(text)
		if err != nil {
			errs = append(errs, &Error{Source: name, Layer: FromEnv, Err: err})
		}
		found[e.Name] = origin
	}
	return found, errs
}
