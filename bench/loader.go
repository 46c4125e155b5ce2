package main

import (
	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store/storetest"
)

// A million tasks over the API take minutes, and what a case measures is not how they came: workspaces are copies of one that
// was registered and set to its plan, and their backlogs are written as rows (storetest.AddBacklog). At the end all turns
// stand in Redis: a worker that starts meanwhile would take them for newcomers, for whose sake nobody goes on with a second
// task until they are served.

// clones makes n workspaces of a plan.
func (f *fleet) clones(n int, plan string) []*tenant {
	model := storetest.NewWorkspace(f.h, f.env, plan)
	all := make([]*tenant, n)
	for i, id := range append([]uuid.UUID{model}, storetest.CloneWorkspace(f.h, f.env, model, n-1)...) {
		all[i] = f.tenant(id, plan)
	}
	return all
}

// load puts n tasks into the workspaces' lines, evenly. A prompt is the workspace's label and the rest, in which # stands
// for the task's number.
func (f *fleet) load(into []*tenant, n int, prompt string) {
	ids, prompts := make([]uuid.UUID, len(into)), make([]string, len(into))
	for i, t := range into {
		ids[i], prompts[i] = t.id, t.label+prompt
	}
	line := jobs.NewEnqueuer(f.rdb, zerolog.Nop())
	for _, turn := range storetest.AddBacklog(f.h, f.env, ids, prompts, n) {
		line.Enqueue(jobs.Turn(turn))
	}
	line.Close()
	f.sent.Add(int64(n))
}
