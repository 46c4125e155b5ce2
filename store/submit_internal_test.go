package store

// HoldSubmits keeps small submits in their lanes until release, so that a test decides which share a flush; waiting counts them.
func (a *API) HoldSubmits() (waiting func() int, release func()) {
	lanes := a.submits.lanes[:]
	for i := range lanes {
		lanes[i].mu.Lock()
		lanes[i].running = true
		lanes[i].mu.Unlock()
	}
	waiting = func() (n int) {
		for i := range lanes {
			lanes[i].mu.Lock()
			n += len(lanes[i].waiting)
			lanes[i].mu.Unlock()
		}
		return n
	}
	return waiting, func() {
		for i := range lanes {
			go a.submits.run(&lanes[i])
		}
	}
}
