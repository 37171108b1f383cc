// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// The four calls are made here and not by the SDK's client for the service, which is half a megabyte of program for the
// sake of some sixty others. The protocol is that of all of AWS's older services: a form goes, a document of XML comes.

// apiVersion is that of the Auto Scaling API, which has only one.
const apiVersion = "2011-01-01"

var errNotAPI = errors.New("the answer is not one of the Auto Scaling API")

// apiError is an error of the API. Like those of the SDK's credentials it is a smithy.APIError.
type apiError struct {
	status        int
	code, message string
	// skew is how far the API's clock is ahead of ours; nil where it does not tell.
	skew *time.Duration
}

var _ smithy.APIError = (*apiError)(nil)

// Error implements error.
func (e *apiError) Error() string { return e.code + ": " + e.message }

// ErrorCode implements smithy.APIError.
func (e *apiError) ErrorCode() string { return e.code }

// ErrorMessage implements smithy.APIError.
func (e *apiError) ErrorMessage() string { return e.message }

// ErrorFault implements smithy.APIError.
func (e *apiError) ErrorFault() smithy.ErrorFault {
	if e.status >= 500 {
		return smithy.FaultServer
	}
	return smithy.FaultClient
}

// post makes one try of one call, and returns the members of the list in its answer.
func (a *AutoScaling) post(ctx context.Context, action string, params url.Values) ([]map[string]string, error) {
	a.mu.Lock()
	endpoint, region, skew := a.endpoint, a.place.region, a.skew
	a.mu.Unlock()
	params.Set("Action", action)
	params.Set("Version", apiVersion)
	form := params.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(endpoint, "/")+"/", strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	credentials, err := a.credentials.Retrieve(ctx)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(form))
	if err := v4.NewSigner().SignHTTP(ctx, credentials, req, hex.EncodeToString(sum[:]), "autoscaling", region, time.Now().Add(skew)); err != nil {
		return nil, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, cloud.MaxBody+1))
	if err != nil {
		return nil, err
	}
	// A success without a body, or with the page of some proxy, is none: a hook would wait that we believe to be completed.
	notAPI := fmt.Errorf("%w (HTTP %d, %d bytes)", errNotAPI, resp.StatusCode, len(body))
	switch {
	case len(body) > cloud.MaxBody, resp.StatusCode < 400 && resp.StatusCode != http.StatusOK:
		return nil, notAPI
	case resp.StatusCode == http.StatusOK:
		root, members, err := readXML(body, "member")
		if err != nil || root != action+"Response" {
			return nil, notAPI
		}
		return members, nil
	}
	root, found, err := readXML(body, "Error")
	if err != nil || root != "ErrorResponse" || len(found) != 1 || found[0]["Code"] == "" {
		return nil, notAPI
	}
	e := &apiError{status: resp.StatusCode, code: found[0]["Code"], message: found[0]["Message"]}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		ahead := time.Until(date)
		e.skew = &ahead
	}
	return nil, e
}

// readXML reads a document to its end: the name of its outermost element, and of each element of a name the texts of the
// elements right below it.
func readXML(body []byte, name string) (root string, found []map[string]string, err error) {
	d := xml.NewDecoder(bytes.NewReader(body))
	var open []string
	in := 0 // the depth of the element that is being read; 0 is none
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) && root != "" {
			return root, found, nil
		}
		if err != nil {
			return "", nil, err
		}
		switch t := t.(type) {
		case xml.StartElement:
			if len(open) == 0 && root != "" {
				return "", nil, errors.New("two documents in one")
			}
			open = append(open, t.Name.Local)
			if root == "" {
				root = t.Name.Local
			}
			if in == 0 && t.Name.Local == name {
				in = len(open)
				found = append(found, map[string]string{})
			}
		case xml.EndElement:
			if len(open) == in {
				in = 0
			}
			open = open[:len(open)-1]
		case xml.CharData:
			if in > 0 && len(open) == in+1 {
				found[len(found)-1][open[in]] += string(t)
			}
		}
	}
}
