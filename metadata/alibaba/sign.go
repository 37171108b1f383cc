// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// algorithm is the name of signature V3. It is described, with an example that the tests repeat, on the page "V3 request
// structure and signature" of the documentation of Alibaba Cloud's SDKs (help/en/sdk/product-overview/
// v3-request-structure-and-signature).
const algorithm = "ACS3-HMAC-SHA256"

const timeFormat = "2006-01-02T15:04:05Z"

// emptyHash is the SHA-256 of nothing: our requests have no body.
const emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// call is what the headers of a request say besides who signs it.
type call struct {
	action, version string
	// nonce is good for one request.
	nonce string
	at    time.Time
}

// sign puts the headers of signature V3 on a request without a body whose parameters are in its query.
//
// All x-acs headers have to be signed, and the host. The signature is made with the secret itself: unlike AWS's it knows
// no key that is derived for a day and a service.
func sign(req *http.Request, k Credentials, c call) {
	h := req.Header
	h.Set("X-Acs-Action", c.action)
	h.Set("X-Acs-Version", c.version)
	h.Set("X-Acs-Date", c.at.UTC().Format(timeFormat))
	h.Set("X-Acs-Signature-Nonce", c.nonce)
	h.Set("X-Acs-Content-Sha256", emptyHash)
	if k.SecurityToken != "" {
		h.Set("X-Acs-Security-Token", k.SecurityToken)
	}
	canonical, names := canonicalRequest(req)
	sum := sha256.Sum256([]byte(canonical))
	mac := hmac.New(sha256.New, []byte(k.AccessKeySecret))
	mac.Write([]byte(algorithm + "\n" + hex.EncodeToString(sum[:])))
	h.Set("Authorization", algorithm+" Credential="+k.AccessKeyID+",SignedHeaders="+names+",Signature="+hex.EncodeToString(mac.Sum(nil)))
}

// canonicalRequest is the text that is signed, and the names of the headers in it.
func canonicalRequest(req *http.Request) (text, names string) {
	lines := map[string]string{"host": req.URL.Host}
	signed := []string{"host"}
	for name, values := range req.Header {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-acs-") {
			lines[name] = strings.TrimSpace(strings.Join(values, ","))
			signed = append(signed, name)
		}
	}
	slices.Sort(signed)
	var headers strings.Builder
	for _, name := range signed {
		headers.WriteString(name + ":" + lines[name] + "\n")
	}
	path := req.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	names = strings.Join(signed, ";")
	return strings.Join([]string{req.Method, path, canonicalQuery(req.URL.Query()), headers.String(), names, emptyHash}, "\n"), names
}

// canonicalQuery is a query in the order of its names, escaped by RFC 3986: a blank is %20, and a tilde stays.
func canonicalQuery(q url.Values) string { return strings.ReplaceAll(q.Encode(), "+", "%20") }
