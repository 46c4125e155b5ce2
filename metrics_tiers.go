package main

import (
	"context"
	"sync"
	"time"

	"github.com/generic-corp/muster/store"
)

// tierLoads reads the load of the tiers for the metrics and the autoscaler of one process. A reading looks at each workspace
// that has work, 150 ms of the ledger's time for 10,000 of them, and Prometheus asks as often as it likes. So a reading
// serves again for restFactor times as long as it took, and at most restLimit: a small ledger's figures are fresh, a large one's
// cost it a twentieth of a processor.
type tierLoads struct {
	system *store.System

	mu    sync.Mutex
	tiers []store.TierFigures
	at    time.Time     // when the reading began
	rest  time.Duration // for how long it serves
}

const (
	restFactor = 20
	restLimit  = 10 * time.Second // well below autoscale.StaleAfter
)

// load returns the figures and when they were read.
func (l *tierLoads) load(ctx context.Context) ([]store.TierFigures, time.Time, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.at) < l.rest {
		return l.tiers, l.at, nil
	}
	began := time.Now()
	tiers, err := l.system.TierLoad(ctx)
	if err != nil {
		return nil, time.Time{}, err
	}
	l.tiers, l.at, l.rest = tiers, began, min(restFactor*time.Since(began), restLimit)
	return tiers, began, nil
}
