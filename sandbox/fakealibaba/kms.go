// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakealibaba

import (
	"net/http"
	"net/url"

	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

const kmsVersion = "2016-01-20"

// SetSecret makes a secret of KMS, as a template does.
func (c *Cloud) SetSecret(name, value string) {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	c.secrets[name] = secret{value: value, versions: map[string]bool{}}
}

// Secret is the value of a secret; "" is none.
func (c *Cloud) Secret(name string) string {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	return c.secrets[name].value
}

type secret struct {
	value    string
	versions map[string]bool
}

// kms answers the calls about secrets. The lock is held.
func (c *Cloud) kms(call string, q url.Values) (map[string]any, *apiError) {
	name := q.Get("SecretName")
	s, ok := c.secrets[name]
	if !ok {
		return nil, notFound("Forbidden.ResourceNotFound", "Resource not found.")
	}
	switch call {
	case "GetSecretValue":
		return map[string]any{"SecretName": name, "SecretData": s.value, "SecretDataType": "text"}, nil
	case "PutSecretValue":
		version, value := q.Get("VersionId"), q.Get("SecretData")
		switch {
		case version == "" || value == "":
			return nil, refuse("MissingParameter", "The parameter VersionId or SecretData is needed but not provided.")
		case s.versions[version] && s.value != value:
			return nil, cloud.Refuse(http.StatusConflict, "Rejected.ResourceExist", "The version exists already.")
		}
		s.versions[version], s.value = true, value
		c.secrets[name] = s
		return map[string]any{"SecretName": name, "VersionId": version}, nil
	}
	return nil, notFound("InvalidAction.NotFound", "Specified api is not found, please check your url and method.")
}
