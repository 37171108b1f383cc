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

	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

// apiError is an error as the API answers it.
type apiError struct {
	status        int
	code, message string
}

func refuse(code, message string) *apiError { return &apiError{http.StatusBadRequest, code, message} }

// The versions of the APIs.
const (
	essVersion    = "2022-02-22"
	essVersionOld = "2014-08-28"
	ecsVersion    = "2014-05-26"
)

func (c *Cloud) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return
	}
	call := r.Header.Get("X-Acs-Action")
	fault, healed := c.Strike(func(f Fault) bool { return f.matches(call) })
	if !fault.HTTP().Wait(r, healed) {
		return
	}
	c.mu.Lock()
	clock := time.Now().Add(c.skew)
	c.mu.Unlock()
	w.Header().Set("Date", clock.UTC().Format(http.TimeFormat))
	q := r.URL.Query()
	note := Entry{
		What: Call, Instance: cmp.Or(q.Get("InstanceIds.1"), q.Get("ResourceId.1")), Text: call,
		Group: q.Get("ScalingGroupId"), Hook: cmp.Or(q.Get("LifecycleHookId"), q.Get("lifecycleHookId")),
	}
	switch {
	case fault.Hang:
		c.note(note, "(hangs)")
		faults.Hang(r, healed)
	case fault.Reset:
		c.note(note, "(reset)")
		faults.Reset(w)
		return
	case fault.Code != "":
		c.note(note, fault.Code)
		c.answer(w, cmp.Or(fault.Status, http.StatusBadRequest), map[string]any{"Code": fault.Code, "Message": "fault of the sandbox", "HostId": r.Host})
		return
	case fault.Status != 0:
		c.note(note, strconv.Itoa(fault.Status))
		w.WriteHeader(fault.Status)
		_, _ = io.WriteString(w, fault.Body)
		return
	}
	by, ae := c.authorise(r, call, body, clock)
	note.By = by
	if r.Header.Get("Content-Type") == "application/x-www-form-urlencoded" {
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return
		}
		maps.Copy(q, form)
	}
	var result map[string]any
	if ae == nil {
		result, ae = c.do(call, r.Header.Get("X-Acs-Version"), q, by)
	}
	if ae != nil {
		c.note(note, ae.code)
		c.answer(w, ae.status, map[string]any{"Code": ae.code, "Message": ae.message, "HostId": r.Host})
		return
	}
	c.note(note, "")
	if fault.Deaf {
		faults.Reset(w)
		return
	}
	c.answer(w, http.StatusOK, result)
}

func (c *Cloud) note(e Entry, code string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.Code = code
	c.write(e)
}

func (c *Cloud) answer(w http.ResponseWriter, status int, v map[string]any) {
	if v == nil {
		v = map[string]any{}
	}
	v["RequestId"] = requestID()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the reader went away: nothing to be done
}

var authorization = regexp.MustCompile(`^ACS3-HMAC-SHA256 Credential=([^,]+),SignedHeaders=([a-z0-9;-]+),Signature=([0-9a-f]{64})$`)

// authorise tells whose key has signed. The signature is computed again, by the
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
	c.mu.Lock()
	owners := slices.Clone(c.owners)
	c.mu.Unlock()
	var k credentials
	by, found := "", false
	for _, o := range owners {
		if key, ok := o.key(m[1]); ok {
			k, by, found = key, o.Instance().ID, true
		}
	}
	if !found {
		return "", &apiError{http.StatusNotFound, "InvalidAccessKeyId.NotFound", "Specified access key is not found."}
	}
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	at, err := time.Parse("2006-01-02T15:04:05Z", r.Header.Get("X-Acs-Date"))
	nonce := r.Header.Get("X-Acs-Signature-Nonce")
	switch {
	case r.Header.Get("X-Acs-Security-Token") != k.token:
		return by, refuse("InvalidSecurityToken.MismatchWithAccessKey", "Specified SecurityToken mismatch with the AccessKey.")
	case !time.Now().Before(k.until):
		return by, refuse("InvalidSecurityToken.Expired", "Specified SecurityToken is expired.")
	case err != nil:
		return by, refuse("InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted.")
	case clock.Sub(at).Abs() > 15*time.Minute:
		return by, refuse("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
	case r.Header.Get("X-Acs-Content-Sha256") != hash:
		return by, refuse("InvalidSignature.ContentSha256", "The content hash is another one.")
	case nonce == "" || !c.fresh(m[1]+nonce):
		return by, refuse("SignatureNonceUsed", "Specified signature nonce was used already.")
	case sign(k.secret, canonical(r, signed, hash)) != m[3]:
		return by, refuse("SignatureDoesNotMatch", "Specified signature is not matched with our calculation.")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.denied[call] || c.denied["*"] {
		return by, &apiError{
			http.StatusForbidden, "Forbidden.RAM",
			"User not authorized to operate on the specified resource, or this API doesn't support RAM.",
		}
	}
	return by, nil
}

func (c *Cloud) fresh(nonce string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nonces[nonce] {
		return false
	}
	c.nonces[nonce] = true
	return true
}

// canonical is the text that is signed.
func canonical(r *http.Request, signed []string, hash string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n", r.Method, r.URL.EscapedPath())
	q := r.URL.Query()
	for i, name := range slices.Sorted(maps.Keys(q)) {
		for _, v := range q[name] {
			if i > 0 {
				b.WriteString("&")
			}
			b.WriteString(percent(name) + "=" + percent(v))
		}
	}
	b.WriteString("\n")
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

// percent escapes by RFC 3986: all but letters, digits and -_.~
func percent(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.~", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
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
	c.mu.Lock()
	defer c.mu.Unlock()
	if call == "ListTagResources" {
		if version != ecsVersion {
			return nil, refuse("InvalidVersion", "Specified parameter Version is not valid.")
		}
		return c.tags(q)
	}
	if version == kmsVersion {
		return c.kms(call, q)
	}
	if version != essVersion && version != essVersionOld {
		return nil, refuse("InvalidVersion", "Specified parameter Version is not valid.")
	}
	if q.Get("RegionId") == "" {
		return nil, refuse("MissingRegionId", "RegionId is mandatory for this action.")
	}
	switch call {
	case "DescribeScalingInstances":
		ids := many(q, "InstanceIds")
		items := []map[string]any{}
		for _, id := range slices.Sorted(maps.Keys(c.members)) {
			if m := c.members[id]; slices.Contains(ids, id) {
				items = append(items, map[string]any{
					"InstanceId": id, "ScalingGroupId": m.group.id, "LifecycleState": m.state, "HealthStatus": "Healthy",
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
		g := c.groups[q.Get("ScalingGroupId")]
		if g == nil {
			return nil, &apiError{http.StatusNotFound, "InvalidScalingGroupId.NotFound", "The specified scaling group does not exist."}
		}
		items := []map[string]any{}
		for _, h := range g.hooks {
			items = append(items, map[string]any{
				"LifecycleHookId": h.ID, "ScalingGroupId": g.id, "DefaultResult": cmp.Or(h.Default, "CONTINUE"),
				"HeartbeatTimeout":    int((cmp.Or(h.Timeout, 10*time.Minute) + time.Second - 1) / time.Second),
				"LifecycleTransition": map[bool]string{false: "SCALE_IN", true: "SCALE_OUT"}[h.Launching],
			})
		}
		return map[string]any{"LifecycleHooks": c.listed("LifecycleHook", items), "TotalCount": len(items)}, nil
	case "RecordLifecycleActionHeartbeat":
		return nil, c.beat(q, by)
	case "CompleteLifecycleAction":
		return nil, c.complete(q, by)
	}
	return nil, &apiError{http.StatusNotFound, "InvalidAction.NotFound", "Specified api is not found, please check your url and method."}
}

// many are the parameters NAME.1, NAME.2, ...
func many(q url.Values, name string) []string {
	var out []string
	for i := 1; q.Has(name + "." + strconv.Itoa(i)); i++ {
		out = append(out, q.Get(name+"."+strconv.Itoa(i)))
	}
	return out
}

func (c *Cloud) listActivities(q url.Values) (map[string]any, *apiError) {
	id := q.Get("ScalingGroupId")
	if c.groups[id] == nil {
		return nil, &apiError{http.StatusNotFound, "InvalidScalingGroupId.NotFound", "The specified scaling group does not exist."}
	}
	page, size := number(q, "PageNumber", 1), number(q, "PageSize", 10)
	if page < 1 || size < 1 || size > 50 {
		return nil, refuse("InvalidParameter", "The specified value of parameter is not valid.")
	}
	items := []map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(c.activities)) {
		a := c.activities[name]
		status := "InProgress"
		if a.over {
			status = "Successful"
		}
		if a.group.id != id || q.Get("StatusCode") != "" && q.Get("StatusCode") != status {
			continue
		}
		items = append(items, map[string]any{"ScalingActivityId": a.id, "ScalingGroupId": id, "StatusCode": status, "Progress": 50})
	}
	total := len(items)
	items = items[min((page-1)*size, total):min(page*size, total)]
	return map[string]any{"ScalingActivities": c.listed("ScalingActivity", items), "TotalCount": total, "PageNumber": page, "PageSize": size}, nil
}

func number(q url.Values, name string, usual int) int {
	if !q.Has(name) {
		return usual
	}
	n, err := strconv.Atoi(q.Get(name))
	if err != nil {
		return -1
	}
	return n
}

func (c *Cloud) listActions(q url.Values) (map[string]any, *apiError) {
	a := c.activities[q.Get("ScalingActivityId")]
	if a == nil {
		return nil, &apiError{http.StatusNotFound, "InvalidScalingActivityId.NotFound", "The specified scaling activity does not exist."}
	}
	size, from := number(q, "MaxResults", 10), number(q, "NextToken", 0)
	if size < 1 || size > 50 || from < 0 {
		return nil, refuse("InvalidParameter", "The specified value of parameter is not valid.")
	}
	items := []map[string]any{}
	now := time.Now() // once: the actions of an activity become visible together
	for _, act := range a.actions {
		status := "Pending"
		if act.done {
			status = "Completed"
		}
		if now.Before(act.visible) || q.Get("LifecycleActionStatus") != "" && q.Get("LifecycleActionStatus") != status {
			continue
		}
		var ids []string
		for _, m := range a.members {
			ids = append(ids, m.id)
		}
		items = append(items, map[string]any{
			"LifecycleHookId": act.hook.ID, "LifecycleActionToken": act.token, "LifecycleActionStatus": status,
			"LifecycleActionResult": cmp.Or(act.hook.Default, "CONTINUE"), "InstanceIds": c.listed("InstanceId", ids),
		})
	}
	total := len(items)
	out := map[string]any{"TotalCount": total, "MaxResults": size}
	if next := min(from, total) + size; next < total {
		out["NextToken"] = strconv.Itoa(next)
	}
	out["LifecycleActions"] = c.listed("LifecycleAction", items[min(from, total):min(from+size, total)])
	return out, nil
}

// waiting finds the action of a hook and a token.
func (c *Cloud) waiting(hook, token string) (*action, *apiError) {
	for _, a := range c.activities {
		for _, act := range a.actions {
			if act.hook.ID == hook && act.token == token && !act.done {
				return act, nil
			}
		}
	}
	return nil, refuse("LifecycleHookIdAndLifecycleActionToken.Invalid",
		"The specified lifecycleActionToken and lifecycleHookId you provided does not match any in process lifecycle action.")
}

func (c *Cloud) beat(q url.Values, by string) *apiError {
	// The first letters are lower-case in this call alone.
	act, ae := c.waiting(q.Get("lifecycleHookId"), q.Get("lifecycleActionToken"))
	if ae != nil {
		return ae
	}
	n := number(q, "heartbeatTimeout", 600)
	d := time.Duration(n) * time.Second
	switch {
	case n < 30 || n > 21600:
		return refuse("InvalidParamter", "The specified value of parameter is not valid.")
	case act.beats >= c.o.Beats:
		return refuse("LifecycleAction.RecordTimesExceeded", "The specified lifecycleAction exceed lifecycleAction max record times.")
	case time.Now().Add(d).After(act.began.Add(c.o.Longest + 2*time.Second)):
		return refuse("LifecycleAction.TimeExceeded", "The specified parameter heartbeatTime exceed lifecycleAction max suspend time.")
	}
	act.beats++
	c.arm(act, d)
	c.write(Entry{What: Heartbeat, Instance: by, Group: act.activity.group.id, Hook: act.hook.ID, Token: act.token, Text: d.String(), By: by})
	return nil
}

func (c *Cloud) complete(q url.Values, by string) *apiError {
	act, ae := c.waiting(q.Get("LifecycleHookId"), q.Get("LifecycleActionToken"))
	if ae != nil {
		return ae
	}
	result := cmp.Or(q.Get("LifecycleActionResult"), act.hook.Default, "CONTINUE")
	if result != "CONTINUE" && result != "ABANDON" && result != "ROLLBACK" {
		return refuse("InvalidParamter", "The specified value of parameter is invalid.")
	}
	c.write(Entry{What: Completed, Instance: by, Group: act.activity.group.id, Hook: act.hook.ID, Token: act.token, Text: result, By: by})
	c.finish(act, result, ByHook)
	return nil
}

// Complete says for somebody who has the right, such as OOS, that a token's wait is
// over. The token is one that [Cloud.Members] gives, HOOK=TOKEN.
func (c *Cloud) Complete(token, result string) error {
	hook, token, _ := strings.Cut(token, "=")
	c.mu.Lock()
	defer c.mu.Unlock()
	if ae := c.complete(url.Values{"LifecycleHookId": {hook}, "LifecycleActionToken": {token}, "LifecycleActionResult": {result}}, "OOS"); ae != nil {
		return fmt.Errorf("%s: %s", ae.code, ae.message)
	}
	return nil
}

func (c *Cloud) tags(q url.Values) (map[string]any, *apiError) {
	if q.Get("ResourceType") != "instance" {
		return nil, refuse("InvalidResourceType.NotFound", "The ResourceType provided does not exist in our records.")
	}
	items := []map[string]any{}
	ids := many(q, "ResourceId")
	for _, o := range c.owners {
		i := o.Instance()
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
