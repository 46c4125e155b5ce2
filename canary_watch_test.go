package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
)

// Where the canaries' words come out of Muster: the model provider and the customers' webhooks.

// watchModels stands before the model server: one call must hold the words of one workspace.
func (z *zoo) watchModels(t *testing.T) string {
	target, err := url.Parse(strings.TrimSuffix(z.vars["OPENAI_BASE_URL"], "/v1"))
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(raw))
		var seen []string
		for _, a := range z.animals {
			if bytes.Contains(raw, []byte(a.word)) {
				seen = append(seen, a.word)
			}
		}
		z.mu.Lock()
		z.modelCalls++
		z.mu.Unlock()
		if len(seen) > 1 {
			t.Errorf("a model call holds the words of %d workspaces", len(seen))
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// watchHooks is where all customers' webhooks are: what comes to one may hold the word in its path and no other.
func (z *zoo) watchHooks(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		for _, a := range z.animals {
			if bytes.Contains(raw, []byte(a.word)) && r.URL.Path != "/"+a.word {
				t.Errorf("a webhook of %s was told of %s", r.URL.Path, a.word)
			}
		}
		z.mu.Lock()
		defer z.mu.Unlock()
		z.hookCalls++
		for _, secret := range z.secrets {
			if bytes.Contains(raw, []byte(secret)) || strings.Contains(fmt.Sprint(r.Header), secret) {
				t.Error("a webhook was told a secret")
			}
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}
