// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakealibaba

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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

type apiError = fakes.APIError

func refuse(code, message string) *apiError {
	return fakes.Refuse(http.StatusBadRequest, code, message)
}

func notFound(code, message string) *apiError {
	return fakes.Refuse(http.StatusNotFound, code, message)
}

// The versions of the APIs.
const (
	essVersion = "2022-02-22"
	ecsVersion = "2014-05-26"
)

// ServeHTTP answers a call.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return
	}
	clock := time.Now().Add(c.o.Skew)
	w.Header().Set("Date", clock.UTC().Format(http.TimeFormat))
	call, q := r.Header.Get("X-Acs-Action"), r.URL.Query()
	e := fakes.Entry{
		Instance: cmp.Or(q.Get("InstanceIds.1"), q.Get("ResourceId.1")), Text: call,
		Group: q.Get("ScalingGroupId"), Hook: cmp.Or(q.Get("LifecycleHookId"), q.Get("lifecycleHookId")),
	}
	c.Serve(w, r, e, func() (string, any, *apiError) {
		by, ae := c.authorise(r, call, body, clock)
		if ae != nil {
			return by, nil, ae
		}
		if r.Header.Get("Content-Type") == "application/x-www-form-urlencoded" {
			form, err := url.ParseQuery(string(body))
			if err != nil {
				return by, nil, refuse("InvalidParameter", "The form cannot be read.")
			}
			maps.Copy(q, form)
		}
		result, ae := c.do(call, r.Header.Get("X-Acs-Version"), q, by)
		return by, result, ae
	}, func(result any, ae *apiError) {
		status, v := http.StatusOK, map[string]any{}
		if ae != nil {
			status, v = ae.Status, map[string]any{"Code": ae.Code, "Message": ae.Message, "HostId": r.Host}
		} else if answer, ok := result.(map[string]any); ok {
			maps.Copy(v, answer)
		}
		v["RequestId"] = strings.ToUpper(fakes.GUID())
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v) // an error is a client that left
	})
}

var authorization = regexp.MustCompile(`^ACS3-HMAC-SHA256 Credential=([^,]+),SignedHeaders=([a-z0-9;-]+),Signature=([0-9a-f]{64})$`)

// authorise returns the instance whose key has signed. The signature is computed again, by the
// description of V3 and not by the code that is tested with this.
func (c *Cloud) authorise(r *http.Request, call string, body []byte, clock time.Time) (string, *apiError) {
	m := authorization.FindStringSubmatch(r.Header.Get("Authorization"))
	if m == nil {
		return "", refuse("IncompleteSignature", "The request signature does not conform to Alibaba Cloud standards.")
	}
	signed := strings.Split(m[2], ";")
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-acs-") && !slices.Contains(signed, name) {
			return "", refuse("IncompleteSignature", "The header "+name+" is not signed.")
		}
	}
	if !slices.Contains(signed, "host") || !slices.IsSorted(signed) {
		return "", refuse("IncompleteSignature", "The host is not signed, or the headers are in no order.")
	}
	var k fakes.Key
	by := ""
	for _, o := range c.owners {
		if key, ok := o.Find(m[1]); ok {
			k, by = key, o.Get().ID
		}
	}
	if by == "" {
		return "", notFound("InvalidAccessKeyId.NotFound", "Specified access key is not found.")
	}
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	at, err := time.Parse("2006-01-02T15:04:05Z", r.Header.Get("X-Acs-Date"))
	nonce := r.Header.Get("X-Acs-Signature-Nonce")
	switch {
	case r.Header.Get("X-Acs-Security-Token") != k.Token:
		return by, refuse("InvalidSecurityToken.MismatchWithAccessKey", "Specified SecurityToken mismatch with the AccessKey.")
	case !time.Now().Before(k.Until):
		return by, refuse("InvalidSecurityToken.Expired", "Specified SecurityToken is expired.")
	case err != nil:
		return by, refuse("InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted.")
	case clock.Sub(at).Abs() > 15*time.Minute:
		return by, refuse("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
	case r.Header.Get("X-Acs-Content-Sha256") != hash:
		return by, refuse("InvalidSignature.ContentSha256", "The content hash is another one.")
	case nonce == "" || c.nonces[m[1]+nonce]:
		return by, refuse("SignatureNonceUsed", "Specified signature nonce was used already.")
	case sign(k.Secret, canonical(r, signed, hash)) != m[3]:
		return by, refuse("SignatureDoesNotMatch", "Specified signature is not matched with our calculation.")
	}
	c.nonces[m[1]+nonce] = true
	if c.Denied(call) {
		return by, fakes.Refuse(http.StatusForbidden, "Forbidden.RAM", "User not authorized to operate on the specified resource, or this API doesn't support RAM.")
	}
	return by, nil
}

// canonical is the text that is signed.
func canonical(r *http.Request, signed []string, hash string) string {
	var b strings.Builder
	// By RFC 3986 a space is %20.
	fmt.Fprintf(&b, "%s\n%s\n%s\n", r.Method, r.URL.EscapedPath(), strings.ReplaceAll(r.URL.Query().Encode(), "+", "%20"))
	for _, name := range signed {
		v := r.Header.Get(name)
		if name == "host" {
			v = r.Host
		}
		fmt.Fprintf(&b, "%s:%s\n", name, strings.TrimSpace(v))
	}
	fmt.Fprintf(&b, "\n%s\n%s", strings.Join(signed, ";"), hash)
	return b.String()
}

func sign(secret, canonical string) string {
	sum := sha256.Sum256([]byte(canonical))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("ACS3-HMAC-SHA256\n" + hex.EncodeToString(sum[:])))
	return hex.EncodeToString(mac.Sum(nil))
}

// listed is a list in the shape that the API has now. The lock is held.
func (c *Cloud) listed(name string, items any) any {
	if c.wrapped {
		return map[string]any{name: items}
	}
	return items
}

func (c *Cloud) do(call, version string, q url.Values, by string) (map[string]any, *apiError) {
	switch {
	case version == kmsVersion:
		return c.kms(call, q)
	case q.Get("RegionId") == "":
		return nil, refuse("MissingRegionId", "RegionId is mandatory for this action.")
	case version == ecsVersion && call == "ListTagResources":
		return c.tags(q)
	case version != essVersion:
		return nil, refuse("InvalidVersion", "Specified parameter Version is not valid.")
	}
	switch call {
	case "DescribeScalingInstances":
		ids := fakes.List(q, "InstanceIds.")
		items := []map[string]any{}
		for _, id := range slices.Sorted(maps.Keys(c.Instances)) {
			if i := c.Instances[id]; slices.Contains(ids, id) {
				items = append(items, map[string]any{
					"InstanceId": id, "ScalingGroupId": i.Group, "LifecycleState": i.State, "HealthStatus": "Healthy",
					"CreationType": "AutoCreated", "WarmupState": "NoNeedWarmup",
				})
			}
		}
		return map[string]any{"ScalingInstances": c.listed("ScalingInstance", items), "TotalCount": len(items), "PageNumber": 1, "PageSize": 10}, nil
	case "DescribeScalingActivities":
		return c.listActivities(q)
	case "DescribeLifecycleActions":
		return c.listActions(q)
	case "DescribeLifecycleHooks":
		group := q.Get("ScalingGroupId")
		hooks, ok := c.Groups[group]
		if !ok {
			return nil, noGroup()
		}
		items := []map[string]any{}
		for _, h := range hooks {
			items = append(items, map[string]any{
				"LifecycleHookId": h.Name, "ScalingGroupId": group, "DefaultResult": h.Default,
				"HeartbeatTimeout":    fakes.WholeSeconds(h.Timeout),
				"LifecycleTransition": map[bool]string{false: "SCALE_IN", true: "SCALE_OUT"}[h.Launching],
			})
		}
		return map[string]any{"LifecycleHooks": c.listed("LifecycleHook", items), "TotalCount": len(items)}, nil
	case "RecordLifecycleActionHeartbeat":
		return nil, c.beat(q, by)
	case "CompleteLifecycleAction":
		return nil, c.complete(q.Get("LifecycleHookId"), q.Get("LifecycleActionToken"), q.Get("LifecycleActionResult"), by)
	}
	return nil, notFound("InvalidAction.NotFound", "Specified api is not found, please check your url and method.")
}

func noGroup() *apiError {
	return notFound("InvalidScalingGroupId.NotFound", "The specified scaling group does not exist.")
}

func (c *Cloud) listActivities(q url.Values) (map[string]any, *apiError) {
	id := q.Get("ScalingGroupId")
	if _, ok := c.Groups[id]; !ok {
		return nil, noGroup()
	}
	items := []map[string]any{}
	for _, a := range c.Activities {
		status := "InProgress"
		if a.Over {
			status = "Successful"
		}
		if a.Group == id && (q.Get("StatusCode") == "" || q.Get("StatusCode") == status) {
			items = append(items, map[string]any{"ScalingActivityId": a.ID, "ScalingGroupId": id, "StatusCode": status, "Progress": 50})
		}
	}
	return map[string]any{"ScalingActivities": c.listed("ScalingActivity", items), "TotalCount": len(items), "PageNumber": 1, "PageSize": 50}, nil
}

func (c *Cloud) listActions(q url.Values) (map[string]any, *apiError) {
	at := slices.IndexFunc(c.Activities, func(a *fakes.Activity) bool { return a.ID == q.Get("ScalingActivityId") })
	if at < 0 {
		return nil, notFound("InvalidScalingActivityId.NotFound", "The specified scaling activity does not exist.")
	}
	a := c.Activities[at]
	items := []map[string]any{}
	now := time.Now() // once: the actions of an activity become visible together
	for _, act := range a.Actions {
		status := "Pending"
		if act.Done {
			status = "Completed"
		}
		if now.Before(act.Visible) || q.Get("LifecycleActionStatus") != "" && q.Get("LifecycleActionStatus") != status {
			continue
		}
		var ids []string
		for _, m := range a.Instances {
			ids = append(ids, m.ID)
		}
		items = append(items, map[string]any{
			"LifecycleHookId": act.Hook.Name, "LifecycleActionToken": act.Token, "LifecycleActionStatus": status,
			"LifecycleActionResult": act.Hook.Default, "InstanceIds": c.listed("InstanceId", ids),
		})
	}
	return map[string]any{"LifecycleActions": c.listed("LifecycleAction", items), "TotalCount": len(items), "MaxResults": 50}, nil
}

// waiting finds the action of a hook and a token.
func (c *Cloud) waiting(hook, token string) (*fakes.Action, *apiError) {
	act := c.Waiting(func(act *fakes.Action) bool { return act.Hook.Name == hook && act.Token == token })
	if act == nil {
		return nil, refuse("LifecycleHookIdAndLifecycleActionToken.Invalid",
			"The specified lifecycleActionToken and lifecycleHookId you provided does not match any in process lifecycle action.")
	}
	return act, nil
}

func (c *Cloud) beat(q url.Values, by string) *apiError {
	// The first letters are lower-case in this call alone.
	act, ae := c.waiting(q.Get("lifecycleHookId"), q.Get("lifecycleActionToken"))
	if ae != nil {
		return ae
	}
	n, err := strconv.Atoi(cmp.Or(q.Get("heartbeatTimeout"), "600"))
	d := time.Duration(n) * time.Second
	switch {
	case err != nil || n < 30 || n > 21600:
		return refuse("InvalidParamter", "The specified value of parameter is not valid.")
	case act.Beats >= maxBeats:
		return refuse("LifecycleAction.RecordTimesExceeded", "The specified lifecycleAction exceed lifecycleAction max record times.")
	case time.Now().Add(d).After(act.Began.Add(c.o.Longest + 2*time.Second)):
		return refuse("LifecycleAction.TimeExceeded", "The specified parameter heartbeatTime exceed lifecycleAction max suspend time.")
	}
	c.Beat(act, d, by, by, d.String())
	return nil
}

func (c *Cloud) complete(hook, token, result, by string) *apiError {
	act, ae := c.waiting(hook, token)
	if ae != nil {
		return ae
	}
	result = cmp.Or(result, act.Hook.Default)
	if result != "CONTINUE" && result != "ABANDON" && result != "ROLLBACK" {
		return refuse("InvalidParamter", "The specified value of parameter is invalid.")
	}
	c.Scaling.Complete(act, result, by, by)
	return nil
}

// Complete ends the wait of a token as another program with the permission does, such as OOS.
func (c *Cloud) Complete(hook, token, result string) error {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	if ae := c.complete(hook, token, result, "OOS"); ae != nil {
		return fmt.Errorf("%s: %s", ae.Code, ae.Message)
	}
	return nil
}

func (c *Cloud) tags(q url.Values) (map[string]any, *apiError) {
	if q.Get("ResourceType") != "instance" {
		return nil, refuse("InvalidResourceType.NotFound", "The ResourceType provided does not exist in our records.")
	}
	items := []map[string]any{}
	ids := fakes.List(q, "ResourceId.")
	for _, o := range c.owners {
		i := o.Get()
		if !slices.Contains(ids, i.ID) {
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(i.Tags)) {
			items = append(items, map[string]any{"ResourceId": i.ID, "ResourceType": "instance", "TagKey": key, "TagValue": i.Tags[key]})
		}
	}
	// That of ECS is wrapped in all versions.
	return map[string]any{"TagResources": map[string]any{"TagResource": items}, "NextToken": ""}, nil
}

const kmsVersion = "2016-01-20"

// SetSecret makes a secret of KMS, as a template does.
func (c *Cloud) SetSecret(name, value string) {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	c.secrets[name] = secret{value: value, versions: map[string]bool{}}
}

// Secret returns the value of a secret; "": it does not exist.
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
			return nil, fakes.Refuse(http.StatusConflict, "Rejected.ResourceExist", "The version exists already.")
		}
		s.versions[version], s.value = true, value
		c.secrets[name] = s
		return map[string]any{"SecretName": name, "VersionId": version}, nil
	}
	return nil, notFound("InvalidAction.NotFound", "Specified api is not found, please check your url and method.")
}
