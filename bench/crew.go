package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/generic-corp/muster/scripts/privateservers"
	"github.com/generic-corp/muster/store/storetest"
	"github.com/generic-corp/muster/worker/childprocess"
	"github.com/generic-corp/muster/worker/provider/providertest"
)

// crew is Muster as it is operated: the real binary's processes, whose agents call a stand-in of a model service in this
// process. What a task's model does stands in its prompt (providertest's directives: sleep=200ms).
type crew struct {
	h      *host
	vars   map[string]string
	models *providertest.Server
	called func(body []byte) []byte // sees each model call, and may change it; nil: nobody listens
	url    string                   // of the API
	procs  map[string]*childprocess.Process
	log    *os.File
	end    func() // stops the processes; they hand back what runs
}

// newCrew prepares the processes; vars are settings beside those that all need.
func newCrew(h *host, env *storetest.Env, vars map[string]string) *crew {
	c := &crew{h: h, models: providertest.New(), procs: map[string]*childprocess.Process{}}
	models := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.called != nil {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return // the worker has gone
			}
			body = c.called(body)
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}
		c.models.ServeHTTP(w, r)
	}))
	port := freePort(h)
	c.url = "http://127.0.0.1:" + port
	c.vars = map[string]string{
		"PATH": os.Getenv("PATH"), "PORT": port, "DATABASE_URL": env.APIURL, "WORKER_DATABASE_URL": env.WorkerURL, "SYSTEM_DATABASE_URL": env.SystemURL,
		"REDIS_URL": env.RedisURL, "JWT_SIGNING_KEYS": fmt.Sprintf("%x", signingKey), "OPENAI_BASE_URL": models.URL + "/v1", "OPENAI_API_KEY": "sk-bench",
		"DRAIN_SECONDS": "5", "LOG_LEVEL": "warn",
	}
	maps.Copy(c.vars, vars)
	var err error
	c.log, err = os.Create(filepath.Join(h.dir, "muster-"+port+".log"))
	h.must(err)
	c.end = sync.OnceFunc(func() {
		for _, p := range c.procs {
			_ = p.Signal(syscall.SIGTERM) // it may be gone
		}
		for _, p := range c.procs {
			_ = p.End(context.Background(), 20*time.Second, syscall.SIGTERM, syscall.SIGKILL)
		}
		models.CloseClientConnections()
		models.Close()
		c.log.Close()
	})
	h.Cleanup(c.end)
	return c
}

func freePort(h *host) string {
	port, err := privateservers.FreePort()
	h.must(err)
	return strconv.Itoa(port)
}

// musterBinary stands beside this program; scripts/bench builds both.
func musterBinary() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	file := filepath.Join(filepath.Dir(self), "muster")
	if _, err := os.Stat(file); err != nil {
		return "", fmt.Errorf("this case needs the muster binary beside the bench: run scripts/bench: %w", err)
	}
	return file, nil
}

// start runs a muster process under a name and returns when it is wired.
func (c *crew) start(name, command string) *childprocess.Process {
	muster, err := musterBinary()
	c.h.must(err)
	ops := "127.0.0.1:" + freePort(c.h)
	env := []string{"OPS_ADDR=" + ops}
	for k, v := range c.vars {
		env = append(env, k+"="+v)
	}
	p, err := childprocess.Start(childprocess.Config{Argv: []string{muster, command}, Env: env, Output: c.log, OnParentDeath: syscall.SIGKILL})
	c.h.must(err)
	c.procs[name] = p
	pages := []string{"http://" + ops + "/health"}
	if command == "api" {
		pages = append(pages, c.url+"/ready")
	}
	for _, page := range pages {
		c.await(name, p, page)
	}
	return p
}

// await waits until a process answers.
func (c *crew) await(name string, p *childprocess.Process, page string) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if !p.Alive() || time.Now().After(deadline) {
			raw, _ := os.ReadFile(c.log.Name())
			c.h.Fatalf("%s does not answer at %s (exit code %d):\n%s", name, page, p.ExitCode(), raw[max(0, len(raw)-2000):])
		}
		if fetch(page, "") == nil {
			return
		}
	}
}

// get asks the API.
func (c *crew) get(path, token string) error { return fetch(c.url+path, token) }

func fetch(url, token string) error {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("GET %s: %d %s", url, res.StatusCode, strings.TrimSpace(string(got)))
	}
	return nil
}
