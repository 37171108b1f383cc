// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"cmp"
	"crypto/rand"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/control"
	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

// The calls that the API knows.
const (
	describeInstances = "DescribeAutoScalingInstances"
	describeHooks     = "DescribeLifecycleHooks"
	recordHeartbeat   = "RecordLifecycleActionHeartbeat"
	complete          = "CompleteLifecycleAction"
)

// Version of the API, and the namespace of its answers.
const (
	apiVersion   = "2011-01-01"
	apiNamespace = "http://autoscaling.amazonaws.com/doc/2011-01-01/"
)

// apiError is an error as the API answers it.
type apiError struct {
	status        int
	code, message string
}

func invalid(format string, args ...any) *apiError {
	return &apiError{http.StatusBadRequest, "ValidationError", fmt.Sprintf(format, args...)}
}

func (a *AutoScaling) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/" {
		a.fail(w, &apiError{http.StatusBadRequest, "MalformedQueryString", "a form is expected, posted to /"})
		return
	}
	call := form.Get("Action")
	fault, healed := a.Strike(func(f APIFault) bool { return f.Action == "" || f.Action == call })
	if !fault.HTTP().Wait(r, healed) {
		return
	}
	note := Entry{What: Call, Instance: form.Get("InstanceId"), Group: form.Get("AutoScalingGroupName"), Hook: form.Get("LifecycleHookName"), Text: call}
	if note.Instance == "" {
		note.Instance = form.Get("InstanceIds.member.1")
	}
	switch {
	case fault.Hang:
		a.note(note, "(hangs)")
		faults.Hang(r, healed)
	case fault.Reset:
		a.note(note, "(reset)")
		faults.Reset(w)
		return
	case fault.Empty, fault.Body != "":
		a.note(note, "(fault)")
		w.WriteHeader(cmp.Or(fault.Status, http.StatusOK))
		_, _ = io.WriteString(w, fault.Body)
		return
	case fault.Code != "":
		a.note(note, fault.Code)
		a.fail(w, &apiError{cmp.Or(fault.Status, http.StatusBadRequest), fault.Code, cmp.Or(fault.Message, "Fault of the sandbox")})
		return
	}
	by, ae := a.authorise(r, call)
	note.By = by
	var result any
	if ae == nil {
		result, ae = a.answer(call, form, by)
	}
	if ae != nil {
		a.note(note, ae.code)
		a.fail(w, ae)
		return
	}
	a.note(note, "")
	if fault.Deaf {
		faults.Reset(w)
		return
	}
	id := requestID()
	w.Header().Set("X-Amzn-Requestid", id)
	w.Header().Set("Content-Type", "text/xml")
	_, _ = io.WriteString(w, xml.Header)
	// An error is that of a reader that went away, here and below.
	_ = xml.NewEncoder(w).Encode(envelope{
		XMLName: xml.Name{Space: apiNamespace, Local: call + "Response"},
		Result:  result, RequestID: id,
	})
}

func requestID() string {
	t := strings.ToLower(rand.Text() + rand.Text())
	return t[:8] + "-" + t[8:12] + "-" + t[12:16] + "-" + t[16:20] + "-" + t[20:32]
}

func (a *AutoScaling) note(e Entry, code string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e.Code = code
	a.write(e)
}

func (a *AutoScaling) fail(w http.ResponseWriter, e *apiError) {
	id := requestID()
	w.Header().Set("X-Amzn-Requestid", id)
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(e.status)
	kind := "Sender"
	if e.status >= http.StatusInternalServerError {
		kind = "Receiver"
	}
	_ = xml.NewEncoder(w).Encode(struct {
		XMLName   xml.Name
		Type      string `xml:"Error>Type"`
		Code      string `xml:"Error>Code"`
		Message   string `xml:"Error>Message"`
		RequestID string `xml:"RequestId"`
	}{XMLName: xml.Name{Space: apiNamespace, Local: "ErrorResponse"}, Type: kind, Code: e.code, Message: e.message, RequestID: id})
}

type envelope struct {
	XMLName   xml.Name
	Result    any
	RequestID string `xml:"ResponseMetadata>RequestId"`
}

// signed is an Authorization header of signature version 4. The signature itself
// is not computed again.
var signed = regexp.MustCompile(
	`^AWS4-HMAC-SHA256 Credential=([A-Z0-9]{16,128})/(\d{8})/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request, SignedHeaders=([a-z0-9;-]+), Signature=[0-9a-f]{64}$`)

// authorise tells whose key has signed.
func (a *AutoScaling) authorise(r *http.Request, call string) (string, *apiError) {
	m := signed.FindStringSubmatch(r.Header.Get("Authorization"))
	if m == nil {
		return "", &apiError{http.StatusForbidden, "MissingAuthenticationToken", "Request is missing Authentication Token"}
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	switch {
	case err != nil || !strings.HasPrefix(r.Header.Get("X-Amz-Date"), m[2]):
		return "", &apiError{http.StatusForbidden, "IncompleteSignature", "Date must be in ISO-8601 'basic format'"}
	case m[3] != a.o.Region || m[4] != "autoscaling":
		return "", &apiError{http.StatusForbidden, "SignatureDoesNotMatch", "Credential should be scoped to a valid region and to autoscaling"}
	case !slices.Contains(strings.Split(m[5], ";"), "host"):
		return "", &apiError{http.StatusForbidden, "SignatureDoesNotMatch", "'Host' must be a signed header"}
	case time.Since(at).Abs() > 5*time.Minute:
		return "", &apiError{http.StatusForbidden, "RequestExpired", "Request has expired"}
	}
	token := r.Header.Get("X-Amz-Security-Token")
	a.mu.Lock()
	defer a.mu.Unlock()
	by, found, inForce := "", a.o.AnyKey, a.o.AnyKey
	for id, owner := range a.owners {
		if owns, ok := owner.owns(m[1], token); owns && (!inForce || ok) {
			by, found, inForce = id, true, ok
		}
	}
	switch {
	case !found:
		return "", &apiError{http.StatusForbidden, "InvalidClientTokenId", "The security token included in the request is invalid"}
	case !inForce:
		return by, &apiError{http.StatusForbidden, "ExpiredToken", "The security token included in the request is expired"}
	case a.denied[call]:
		return by, &apiError{
			http.StatusForbidden, "AccessDenied",
			"User: arn:aws:sts::123456789012:assumed-role/ams-node/" + by + " is not authorized to perform: autoscaling:" + call +
				" because no identity-based policy allows the autoscaling:" + call + " action",
		}
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
		return nil, &apiError{http.StatusBadRequest, "InvalidAction", "Could not find operation " + call + " for version " + v}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch call {
	case describeInstances:
		type result struct {
			XMLName   xml.Name
			Instances []instanceXML `xml:"AutoScalingInstances>member"`
		}
		out := result{XMLName: xml.Name{Local: call + "Result"}}
		ids := list(form, "InstanceIds")
		for id, m := range a.members {
			if len(ids) > 0 && !slices.Contains(ids, id) {
				continue
			}
			out.Instances = append(out.Instances, instanceXML{
				Group: m.group.name, Zone: a.o.Region + "a", Health: "HEALTHY", InstanceID: id, State: m.state,
			})
		}
		slices.SortFunc(out.Instances, func(a, b instanceXML) int { return strings.Compare(a.InstanceID, b.InstanceID) })
		return out, nil
	case describeHooks:
		type result struct {
			XMLName xml.Name
			Hooks   []hookXML `xml:"LifecycleHooks>member"`
		}
		out := result{XMLName: xml.Name{Local: call + "Result"}}
		g := a.groups[form.Get("AutoScalingGroupName")]
		if g == nil {
			return nil, notFound(form.Get("AutoScalingGroupName"))
		}
		names := list(form, "LifecycleHookNames")
		for _, h := range g.hooks {
			if len(names) > 0 && !slices.Contains(names, h.Name) {
				continue
			}
			result := "ABANDON"
			if h.Continue {
				result = "CONTINUE"
			}
			out.Hooks = append(out.Hooks, hookXML{
				Group: g.name, Default: result, Global: wholeSeconds(h.global()), Heartbeat: wholeSeconds(h.heartbeat()),
				Name: h.Name, When: h.transition(),
			})
		}
		return out, nil
	case recordHeartbeat, complete:
		ae := a.word(call, form, by)
		return struct{ XMLName xml.Name }{xml.Name{Local: call + "Result"}}, ae
	default:
		return nil, &apiError{http.StatusBadRequest, "InvalidAction", "Could not find operation " + call + " for version " + apiVersion}
	}
}

// word is what somebody says to a hook that waits.
func (a *AutoScaling) word(call string, form url.Values, by string) *apiError {
	groupName, hook := form.Get("AutoScalingGroupName"), form.Get("LifecycleHookName")
	id, token := form.Get("InstanceId"), form.Get("LifecycleActionToken")
	result := form.Get("LifecycleActionResult")
	switch {
	case a.groups[groupName] == nil:
		return notFound(groupName)
	case hook == "":
		return invalid("1 validation error detected: Value null at 'lifecycleHookName' failed to satisfy constraint: Member must not be null")
	case id == "" && token == "":
		return invalid("Either the instance ID or the lifecycle action token must be given")
	case call == complete && result != "CONTINUE" && result != "ABANDON":
		return invalid("Lifecycle action result must be CONTINUE or ABANDON")
	}
	for _, m := range a.members {
		act := m.actions[hook]
		if m.group.name != groupName || act == nil || act.done || time.Now().Before(act.visible) ||
			(id != "" && id != m.id) || (token != "" && token != act.token) {
			continue
		}
		e := Entry{Instance: m.id, Group: groupName, Hook: hook, By: by}
		if call == recordHeartbeat {
			act.beats++
			e.What, e.Text = Heartbeat, strconv.Itoa(act.beats)
			a.write(e)
			a.arm(m, act)
			return nil
		}
		e.What, e.Text = Completed, result
		a.write(e)
		a.finish(m, act, result == "CONTINUE")
		return nil
	}
	if id == "" {
		return invalid("No active Lifecycle Action found with token %s", token)
	}
	return invalid("No active Lifecycle Action found with instance ID %s", id)
}

func notFound(group string) *apiError {
	return invalid("AutoScalingGroup name not found - AutoScalingGroup '%s' not found", group)
}

func wholeSeconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

func list(form url.Values, name string) []string {
	var out []string
	for i := 1; form.Has(name + ".member." + strconv.Itoa(i)); i++ {
		out = append(out, form.Get(name+".member."+strconv.Itoa(i)))
	}
	return out
}

func parseAPIFault(q url.Values) (APIFault, error) {
	var f APIFault
	err := control.Decode(q, map[string]any{
		"action": &f.Action, "code": &f.Code, "message": &f.Message, "body": &f.Body,
		"status": &f.Status, "times": &f.Times, "ms": &f.Delay,
		"empty": &f.Empty, "hang": &f.Hang, "reset": &f.Reset, "deaf": &f.Deaf,
	})
	return f, err
}
