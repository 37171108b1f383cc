// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
)

// The calls about a hook that waits.
const (
	recordHeartbeat = "RecordLifecycleActionHeartbeat"
	complete        = "CompleteLifecycleAction"
)

// Version of the API, and the namespace of its answers.
const (
	apiVersion   = "2011-01-01"
	apiNamespace = "http://autoscaling.amazonaws.com/doc/2011-01-01/"
)

type apiError = fakes.APIError

func invalid(format string, args ...any) *apiError {
	return fakes.Refuse(http.StatusBadRequest, "ValidationError", fmt.Sprintf(format, args...))
}

func forbidden(code, message string) *apiError {
	return fakes.Refuse(http.StatusForbidden, code, message)
}

// ServeHTTP answers a call.
func (a *AutoScaling) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/" {
		reply(w, "", nil, fakes.Refuse(http.StatusBadRequest, "MalformedQueryString", "a form is expected, posted to /"))
		return
	}
	call := form.Get("Action")
	e := fakes.Entry{
		Instance: cmp.Or(form.Get("InstanceId"), form.Get("InstanceIds.member.1")), Group: form.Get("AutoScalingGroupName"),
		Hook: form.Get("LifecycleHookName"), Text: call,
	}
	a.Serve(w, r, e, func() (string, any, *apiError) {
		by, ae := a.authorise(r, call)
		if ae != nil {
			return by, nil, ae
		}
		result, ae := a.answer(call, form, by)
		return by, result, ae
	}, func(result any, ae *apiError) { reply(w, call, result, ae) })
}

func reply(w http.ResponseWriter, call string, result any, ae *apiError) {
	id := fakes.GUID()
	w.Header().Set("X-Amzn-Requestid", id)
	w.Header().Set("Content-Type", "text/xml")
	// An error of Encode is a client that left.
	if ae == nil {
		_, _ = io.WriteString(w, xml.Header)
		_ = xml.NewEncoder(w).Encode(envelope{XMLName: xml.Name{Space: apiNamespace, Local: call + "Response"}, Result: result, RequestID: id})
		return
	}
	kind := "Sender"
	if ae.Status >= http.StatusInternalServerError {
		kind = "Receiver"
	}
	w.WriteHeader(ae.Status)
	_ = xml.NewEncoder(w).Encode(struct {
		XMLName   xml.Name
		Type      string `xml:"Error>Type"`
		Code      string `xml:"Error>Code"`
		Message   string `xml:"Error>Message"`
		RequestID string `xml:"RequestId"`
	}{XMLName: xml.Name{Space: apiNamespace, Local: "ErrorResponse"}, Type: kind, Code: ae.Code, Message: ae.Message, RequestID: id})
}

type envelope struct {
	XMLName   xml.Name
	Result    any
	RequestID string `xml:"ResponseMetadata>RequestId"`
}

// signed is an Authorization header of signature version 4. The signature itself is not computed again.
var signed = regexp.MustCompile(
	`^AWS4-HMAC-SHA256 Credential=([A-Z0-9]{16,128})/(\d{8})/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request, SignedHeaders=([a-z0-9;-]+), Signature=[0-9a-f]{64}$`)

// authorise returns the instance whose key has signed.
func (a *AutoScaling) authorise(r *http.Request, call string) (string, *apiError) {
	m := signed.FindStringSubmatch(r.Header.Get("Authorization"))
	if m == nil {
		return "", forbidden("MissingAuthenticationToken", "Request is missing Authentication Token")
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	switch {
	case err != nil || !strings.HasPrefix(r.Header.Get("X-Amz-Date"), m[2]):
		return "", forbidden("IncompleteSignature", "Date must be in ISO-8601 'basic format'")
	case m[3] != a.region || m[4] != "autoscaling":
		return "", forbidden("SignatureDoesNotMatch", "Credential should be scoped to a valid region and to autoscaling")
	case !slices.Contains(strings.Split(m[5], ";"), "host"):
		return "", forbidden("SignatureDoesNotMatch", "'Host' must be a signed header")
	case time.Since(at).Abs() > 5*time.Minute:
		return "", forbidden("RequestExpired", "Request has expired")
	}
	token := r.Header.Get("X-Amz-Security-Token")
	var key fakes.Key
	by := ""
	for id, owner := range a.owners {
		if k, ok := owner.Find(m[1]); ok {
			key, by = k, id
		}
	}
	switch {
	case by == "":
		return "", forbidden("InvalidClientTokenId", "The security token included in the request is invalid")
	case token != key.Token || !time.Now().Before(key.Until):
		return by, forbidden("ExpiredToken", "The security token included in the request is expired")
	case a.Denied(call):
		return by, forbidden("AccessDenied", "User: arn:aws:sts::123456789012:assumed-role/ams-node/"+by+" is not authorized to perform: autoscaling:"+
			call+" because no identity-based policy allows the autoscaling:"+call+" action")
	}
	return by, nil
}

type instanceXML struct {
	Group      string `xml:"AutoScalingGroupName"`
	Zone       string `xml:"AvailabilityZone"`
	Health     string `xml:"HealthStatus"`
	InstanceID string `xml:"InstanceId"`
	State      string `xml:"LifecycleState"`
	Protected  bool   `xml:"ProtectedFromScaleIn"`
}

type hookXML struct {
	Group     string `xml:"AutoScalingGroupName"`
	Default   string `xml:"DefaultResult"`
	Global    int    `xml:"GlobalTimeout"`
	Heartbeat int    `xml:"HeartbeatTimeout"`
	Name      string `xml:"LifecycleHookName"`
	When      string `xml:"LifecycleTransition"`
}

func (a *AutoScaling) answer(call string, form url.Values, by string) (any, *apiError) {
	if v := form.Get("Version"); v != apiVersion {
		return nil, fakes.Refuse(http.StatusBadRequest, "InvalidAction", "Could not find operation "+call+" for version "+v)
	}
	switch call {
	case "DescribeAutoScalingInstances":
		type result struct {
			XMLName   xml.Name
			Instances []instanceXML `xml:"AutoScalingInstances>member"`
		}
		out := result{XMLName: xml.Name{Local: call + "Result"}}
		ids := fakes.List(form, "InstanceIds.member.")
		for _, id := range slices.Sorted(maps.Keys(a.Instances)) {
			if i := a.Instances[id]; len(ids) == 0 || slices.Contains(ids, id) {
				out.Instances = append(out.Instances, instanceXML{Group: i.Group, Zone: a.region + "a", Health: "HEALTHY", InstanceID: id, State: i.State})
			}
		}
		return out, nil
	case "DescribeLifecycleHooks":
		type result struct {
			XMLName xml.Name
			Hooks   []hookXML `xml:"LifecycleHooks>member"`
		}
		out := result{XMLName: xml.Name{Local: call + "Result"}}
		group := form.Get("AutoScalingGroupName")
		hooks, ok := a.Groups[group]
		if !ok {
			return nil, notFound(group)
		}
		if form.Has("LifecycleHookNames.member.1") {
			return nil, invalid("this fake lists all hooks of a group")
		}
		for _, h := range hooks {
			when := "autoscaling:EC2_INSTANCE_TERMINATING"
			if h.Launching {
				when = "autoscaling:EC2_INSTANCE_LAUNCHING"
			}
			out.Hooks = append(out.Hooks, hookXML{
				Group: group, Default: h.Default, Global: fakes.WholeSeconds(h.Limit), Heartbeat: fakes.WholeSeconds(h.Timeout), Name: h.Name, When: when,
			})
		}
		return out, nil
	case recordHeartbeat, complete:
		return struct{ XMLName xml.Name }{xml.Name{Local: call + "Result"}}, a.action(call, form, by)
	default:
		return nil, fakes.Refuse(http.StatusBadRequest, "InvalidAction", "Could not find operation "+call+" for version "+apiVersion)
	}
}

// action answers the calls about a hook that waits.
func (a *AutoScaling) action(call string, form url.Values, by string) *apiError {
	group, hook := form.Get("AutoScalingGroupName"), form.Get("LifecycleHookName")
	id, token := form.Get("InstanceId"), form.Get("LifecycleActionToken")
	result := form.Get("LifecycleActionResult")
	switch {
	case a.Groups[group] == nil:
		return notFound(group)
	case hook == "":
		return invalid("1 validation error detected: Value null at 'lifecycleHookName' failed to satisfy constraint: Member must not be null")
	case id == "" && token == "":
		return invalid("Either the instance ID or the lifecycle action token must be given")
	case call == complete && result != "CONTINUE" && result != "ABANDON":
		return invalid("Lifecycle action result must be CONTINUE or ABANDON")
	}
	act := a.Waiting(func(act *fakes.Action) bool {
		return act.Activity.Group == group && act.Hook.Name == hook && !time.Now().Before(act.Visible) &&
			(id == "" || id == act.Activity.Instances[0].ID) && (token == "" || token == act.Token)
	})
	switch {
	case act == nil && id == "":
		return invalid("No active Lifecycle Action found with token %s", token)
	case act == nil:
		return invalid("No active Lifecycle Action found with instance ID %s", id)
	case call == recordHeartbeat:
		a.Beat(act, act.Hook.Timeout, act.Activity.Instances[0].ID, by, strconv.Itoa(act.Beats+1))
	default:
		a.Complete(act, result, act.Activity.Instances[0].ID, by)
	}
	return nil
}

func notFound(group string) *apiError {
	return invalid("AutoScalingGroup name not found - AutoScalingGroup '%s' not found", group)
}
