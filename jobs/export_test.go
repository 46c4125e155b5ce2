package jobs

// Gathered is how many scripts wait for the next round trip.
func (p *Pipe) Gathered() int { return len(p.scripts) }
