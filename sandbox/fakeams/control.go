// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/amsagent/amsagent/internal/fakes/control"
)

// status is what GET /state answers.
type status struct {
	State   State             `json:"state"`
	Mode    string            `json:"mode"`
	Release string            `json:"release"`
	Address string            `json:"address"`
	NodeID  string            `json:"node_id"`
	Beats   int               `json:"beats"`
	Apps    map[string]string `json:"apps"` // "ok", or why it did not start
	// Applications are where each application is in its start.
	Applications map[string]AppState `json:"applications"`
	Streams      []Stream            `json:"streams"`
	Viewers      []Viewers           `json:"viewers"` // besides those of Streams
}

// controlHandler is the control port:
//
//	GET    /state
//	GET    /stats      sessions served, live, left and cut
//	POST   /behaviour  ?silent=true liveness=500 statistics=500 clock_skew_ms=N slow_stop_ms=N
//	                   hang=true applications=500 app_jwt=true app_ip_filter=true play_token=true
//	POST   /application ?app=LiveApp&serving=false
//	PUT    /application ?app=new: the panel creates it
//	DELETE /application ?app=new
//	POST   /settings   ?app=LiveApp&KEY=VALUE: the panel changes settings
//	POST   /stream     ?app=LiveApp&id=s1 and, for viewers, webrtc=N hls=N dash=N rtmp=N;
//	                   announced=true: it ends as finished
//	DELETE /stream     ?app=LiveApp&id=s1
//	POST   /viewers    ?app=LiveApp&stream=s1 kind=hls n=3 connect=true from=10.0.0.9
//	DELETE /viewers    ?app=LiveApp&stream=s1 kind=hls n=3; without n all of that kind
//	POST   /crash
//	POST   /stop       as SIGTERM
func (s *Server) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) {
		control.JSON(w, s.status())
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		control.JSON(w, s.Stats())
	})
	mux.HandleFunc("POST /behaviour", func(w http.ResponseWriter, r *http.Request) {
		b := s.behaviour()
		if err := b.apply(r.URL.Query()); err != nil {
			control.Fail(w, http.StatusBadRequest, err)
			return
		}
		s.SetBehaviour(func(to *Behaviour) { *to = b })
		control.JSON(w, s.status())
	})
	mux.HandleFunc("POST /stream", func(w http.ResponseWriter, r *http.Request) {
		st, err := parseStream(r.URL.Query())
		if err == nil {
			err = s.AddStream(r.Context(), st)
		}
		s.answer(w, err)
	})
	mux.HandleFunc("DELETE /stream", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		s.answer(w, s.EndStream(r.Context(), q.Get("app"), q.Get("id")))
	})
	for method, do := range map[string]func(context.Context, Viewers) error{
		http.MethodPost: s.AddViewers, http.MethodDelete: s.RemoveViewers,
	} {
		mux.HandleFunc(method+" /viewers", func(w http.ResponseWriter, r *http.Request) {
			v, err := parseViewers(r.URL.Query())
			if err == nil {
				err = do(r.Context(), v)
			}
			s.answer(w, err)
		})
	}
	s.applicationControls(mux)
	mux.HandleFunc("POST /crash", func(w http.ResponseWriter, _ *http.Request) {
		s.Crash()
		control.JSON(w, s.status())
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, s.Stop(context.WithoutCancel(r.Context())))
	})
	return mux
}

func (s *Server) applicationControls(mux *http.ServeMux) {
	mux.HandleFunc("POST /application", func(w http.ResponseWriter, r *http.Request) {
		var name string
		var serving bool
		err := control.Decode(r.URL.Query(), map[string]any{"app": &name, "serving": &serving})
		if err == nil {
			err = s.SetServing(name, serving)
		}
		s.answer(w, err)
	})
	mux.HandleFunc("PUT /application", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, s.CreateApplication(r.Context(), r.URL.Query().Get("app")))
	})
	mux.HandleFunc("DELETE /application", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, s.DeleteApplication(r.URL.Query().Get("app")))
	})
	mux.HandleFunc("POST /settings", func(w http.ResponseWriter, r *http.Request) {
		change := map[string]string{}
		for key, values := range r.URL.Query() {
			if key != "app" {
				change[key] = values[len(values)-1]
			}
		}
		s.answer(w, s.SaveSettings(r.Context(), r.URL.Query().Get("app"), change))
	})
}

func (s *Server) answer(w http.ResponseWriter, err error) {
	if err != nil {
		control.Fail(w, http.StatusBadRequest, err)
		return
	}
	control.JSON(w, s.status())
}

func (s *Server) status() status {
	st := status{
		Mode: s.Mode(), Release: s.in.version, Address: s.address, NodeID: s.nodeID,
		Apps: map[string]string{}, Applications: map[string]AppState{}, Streams: s.Streams(), Viewers: s.Audience(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.State, st.Beats = s.state, s.beats
	for name, a := range s.apps {
		st.Apps[name], st.Applications[name] = "ok", a.state
		if a.err != nil {
			st.Apps[name] = a.err.Error()
		}
	}
	return st
}

func (b *Behaviour) apply(q url.Values) error {
	return control.Decode(q, map[string]any{
		"silent": &b.Silent, "liveness": &b.Liveness, "statistics": &b.Statistics,
		"clock_skew_ms": &b.ClockSkew, "slow_stop_ms": &b.SlowStop,
		"hang": &b.Hang, "applications": &b.Applications,
		"app_jwt": &b.AppJWT, "app_ip_filter": &b.AppIPFilter, "play_token": &b.PlayToken,
	})
}

func parseStream(q url.Values) (Stream, error) {
	var st Stream
	err := control.Decode(q, map[string]any{
		"app": &st.App, "id": &st.ID, "announced": &st.Announced,
		"webrtc": &st.WebRTC, "hls": &st.HLS, "dash": &st.DASH, "rtmp": &st.RTMP,
	})
	return st, err
}

func parseViewers(q url.Values) (Viewers, error) {
	var v Viewers
	err := control.Decode(q, map[string]any{
		"app": &v.App, "stream": &v.Stream, "kind": (*string)(&v.Kind), "from": &v.From, "n": &v.N, "connect": &v.Connect,
	})
	if err == nil && q.Has("n") && v.N < 1 {
		err = errors.New("parameter n: want at least one")
	}
	return v, err
}
