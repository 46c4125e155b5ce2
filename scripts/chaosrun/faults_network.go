//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Faults of the network.
var networkFaults = []fault{
	cutServer("redis", 10*time.Second), cutServer("redis", 35*time.Second), cutServer("redis", 45*time.Second), cutServer("redis", 90*time.Second),
	cutServer("postgres", 10*time.Second), cutServer("postgres", 45*time.Second), cutServer("postgres", 90*time.Second),
	{"lose-commits-api", "Postgres' replies to commits of the API are lost", 8 * time.Second, loseCommits("api")},
	{"lose-commits-worker", "the same of the workers: claims, finishes, calls", 8 * time.Second, loseCommits("worker")},
	{"lose-answers", "the API's answers to submits are lost", 8 * time.Second, loseAnswers},
}

// cutAll cuts wires; the function mends them.
func cutAll(on []*wire, how string) (mend func() error, err error) {
	if len(on) == 0 {
		return nil, fmt.Errorf("%w: there is nothing to cut", errNotFired)
	}
	for _, w := range on {
		if err := w.cut(how); err != nil {
			return nil, err
		}
	}
	return func() error {
		var errs []error
		for _, w := range on {
			errs = append(errs, w.mend(how))
		}
		return errors.Join(errs...)
	}, nil
}

// cutServer cuts a server off from all of muster. The agents run on: the checker finds those that did not.
func cutServer(server string, length time.Duration) fault {
	name := fmt.Sprintf("cut-%s-%d", server, int(length.Seconds()))
	about := fmt.Sprintf("%s is cut off from every process for %d s, refusing or silent", server, int(length.Seconds()))
	return fault{name, about, length + 8*time.Second, func(ctx context.Context, s *stage, f *firing) error {
		how := []string{refusing, silent}[s.pick(2)]
		on := s.wires.find("", server)
		const lasting = 4
		still, err := s.load.lasting(ctx, lasting, length+12*time.Second)
		if err != nil {
			return err
		}
		failed := s.countBeatFailures()
		mend, err := cutAll(on, how)
		if err != nil {
			return err
		}
		f.say("%s", how)
		pause(ctx, length)
		byStatus, slowest := s.load.since(f.beganAt)
		left := len(still())
		if err := mend(); err != nil {
			return err
		}
		f.lift()
		f.say("of %d agents that take longer than the cut %d still ran at its end", lasting, left)
		if f.alone && left != lasting {
			return errors.New("agents were canceled")
		}
		if server == "redis" {
			f.say("%d requests were acknowledged during it, none was answered after more than %d ms", byStatus["202"], slowest.Milliseconds())
			if byStatus["202"] == 0 {
				return errors.New("without Redis no task was accepted")
			}
			return nil
		}
		if err := until(ctx, 20*time.Second, "beats that failed", func() bool { return failed() > 0 }); err != nil {
			return err
		}
		f.say("%.0f beats failed, %d requests got 503, after %.1f s at most, %d no answer", failed(), byStatus["503"], slowest.Seconds(), byStatus["0"])
		if f.alone && byStatus["0"] > 0 {
			return errors.New("requests were left without an answer")
		}
		return nil
	}}
}

// countBeatFailures begins to count beats that fail. Each process counts for itself, and a killed one's are gone with it.
func (s *stage) countBeatFailures() (sinceThen func() float64) {
	now := func() map[string]float64 {
		counts := map[string]float64{}
		for _, m := range s.of("worker") {
			_, proc := m.now()
			counts[proc] = m.metric("muster_beat_failures_total")
		}
		return counts
	}
	before := now()
	return func() (n float64) {
		for proc, count := range now() {
			n += max(0, count-before[proc])
		}
		return n
	}
}

// loseCommits lets Postgres commit and its reply disappear.
func loseCommits(who string) func(context.Context, *stage, *firing) error {
	return func(ctx context.Context, s *stage, f *firing) error {
		var on []*wire
		for _, m := range s.of(who) {
			on = append(on, s.wires.find(m.name, "postgres")...)
		}
		end, err := lossOn(on, f.name, tagCommit, 12, int64(5+s.pick(7)))
		if err != nil {
			return err
		}
		pause(ctx, 6*time.Second)
		lost, err := end(ctx)
		if err != nil {
			return err
		}
		f.lift()
		f.say("%d replies to commits were lost", lost)
		return nil
	}
}

// loseAnswers lets the API commit and answer, and the answer disappear. The customers ask again with the same key.
func loseAnswers(ctx context.Context, s *stage, f *firing) error {
	end, err := lossOn(s.wires.find("client", "api"), f.name, tagAccepted, 12, int64(3+s.pick(4)))
	if err != nil {
		return err
	}
	pause(ctx, 6*time.Second)
	lost, err := end(ctx)
	if err != nil {
		return err
	}
	f.lift()
	var replayed int
	if err := until(ctx, 30*time.Second, "a repeated request to be recognised", func() bool {
		byStatus, _ := s.load.since(f.beganAt)
		replayed = byStatus["replayed"]
		return replayed > 0
	}); err != nil {
		return err
	}
	f.say("%d answers 202 were lost, %d repeats were answered with the first one", lost, replayed)
	return nil
}
