package store

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// How the members of a shared transaction are kept from harming each other:
//
//   - Values that the database refuses: the batch is halved until the culprit stands alone.
//   - A load row that somebody holds (a bulk cancel, a paused process): after the role's lock_timeout the batch goes on
//     with the rows that are free. The rest waits aside, each workspace by itself, and so does what arrives for those
//     workspaces meanwhile: a lane pays for a held row once, not with every batch.
//   - A ledger that cannot be reached: everybody learns it and asks again.

// batchTimeout bounds one shared transaction; the role's lock_timeout is far below it.
const batchTimeout = 15 * time.Second

// How often a transaction is tried that met a deadlock or a held row; and a held row by a workspace that waits aside.
const (
	batchTries = 3
	asideTries = 10
)

// commit runs the batch and answers every member, those set aside later.
func (f *Fleet) commit(batch []*op) {
	err := f.try(batch)
	for range batchTries {
		if !isLockTimeout(err) {
			break
		}
		free, held, parted := f.part(batch)
		if parted != nil {
			err = parted
			break
		}
		f.setAside(held)
		if batch = free; len(batch) == 0 {
			return
		}
		err = f.try(batch)
	}
	switch {
	case isLockTimeout(err): // by rows that are taken and let go again and again
		f.setAside(batch)
	case !f.halve(batch, err, f.commit):
		answer(batch, err)
	}
}

// try runs the batch in one transaction, again after a deadlock.
func (f *Fleet) try(batch []*op) (err error) {
	for range batchTries {
		ctx, cancel := context.WithTimeout(context.Background(), batchTimeout)
		err = inTx(ctx, f.db, func(tx *sqlx.Tx) error { return runBatch(ctx, tx, batch) })
		cancel()
		if sqlClass(err) != "40" {
			return err
		}
	}
	return err
}

// halve gives commit the halves of a batch that the database refused, unless the refusal says nothing about its
// members: false then.
func (f *Fleet) halve(batch []*op, err error, commit func([]*op)) bool {
	if len(batch) < 2 || sqlCode(err) == "" || Unavailable(err) {
		return false
	}
	commit(batch[:len(batch)/2])
	commit(batch[len(batch)/2:])
	return true
}

// part tells the members whose load rows somebody holds from those that can go on. A row may be taken or let go right
// after: this is a guess that a lock's timeout corrects.
func (f *Fleet) part(batch []*op) (free, held []*op, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), batchTimeout)
	defer cancel()
	var unlocked []uuid.UUID
	err = inTx(ctx, f.db, func(tx *sqlx.Tx) error {
		loads, err := lockFreeLoads(ctx, tx, workspacesIn(batch))
		unlocked = workspacesOf(loads)
		return err
	})
	for _, o := range batch {
		if slices.Contains(unlocked, o.workspace()) {
			free = append(free, o)
		} else {
			held = append(held, o)
		}
	}
	return free, held, err
}

// setAside lets ops wait with their workspaces.
func (f *Fleet) setAside(ops []*op) {
	for _, o := range ops {
		if ws := o.workspace(); f.aside.put(ws, o) {
			f.wg.Go(func() { f.aside.serve(ws, f.commitAside) })
		}
	}
}

// commitAside runs ops of one workspace and answers them. A row that stays held is Unavailable to them.
func (f *Fleet) commitAside(batch []*op) {
	var err error
	for range asideTries {
		if err = f.try(batch); !isLockTimeout(err) {
			break
		}
	}
	if !f.halve(batch, err, f.commitAside) {
		answer(batch, err)
	}
}

func answer(batch []*op, err error) {
	for _, o := range batch {
		o.answer(err)
	}
}

func isLockTimeout(err error) bool { return sqlCode(err) == "55P03" }

// workspacesIn lists the workspaces of a batch, each once.
func workspacesIn(batch []*op) []uuid.UUID {
	seen := make(map[uuid.UUID]bool, len(batch))
	var workspaces []uuid.UUID
	for _, o := range batch {
		if ws := o.workspace(); !seen[ws] {
			seen[ws] = true
			workspaces = append(workspaces, ws)
		}
	}
	return workspaces
}

// runBatch applies finishes, then claims, over all workspaces of the batch.
func runBatch(ctx context.Context, tx *sqlx.Tx, batch []*op) error {
	var finishes []*Finish
	for _, o := range batch {
		o.claimed, o.finished = nil, nil
		if o.finish != nil {
			finishes = append(finishes, o.finish)
		}
	}
	loads, err := lockLoads(ctx, tx, workspacesIn(batch))
	if err != nil {
		return err
	}
	byID, n := loadsByID(loads), &notes{}
	finished, err := finishAll(ctx, tx, n, byID, finishes)
	if err != nil {
		return err
	}
	var claims, repeated []*Claim
	for _, o := range batch {
		claim := o.claim
		if o.finish != nil && finished[o.finish.Lease].Accepted {
			claim = o.finish.Next
		}
		switch {
		case claim == nil:
		case o.again:
			repeated = append(repeated, claim)
		default:
			claims = append(claims, claim)
		}
	}
	own := map[uuid.UUID]*Claimed{}
	if len(repeated) > 0 {
		if own, err = ownClaims(ctx, tx, repeated); err != nil {
			return err
		}
		for _, c := range repeated {
			if own[c.Lease] == nil {
				claims = append(claims, c)
			}
		}
	}
	claimed, turns, err := claimAll(ctx, tx, loads, claims)
	if err != nil {
		return err
	}
	if err := n.append(ctx, tx, nil); err != nil {
		return err
	}
	maps.Copy(claimed, own)
	next := make(map[uuid.UUID]*Turn, len(turns))
	for _, t := range turns {
		next[t.Workspace] = &t
	}
	for _, o := range batch {
		ws := o.workspace()
		turn := next[ws]
		if turn == nil && o.again && byID[ws] != nil && byID[ws].Turn != nil {
			// The turn of the lost answer: enqueueing it a second time does no harm.
			l := byID[ws]
			turn = &Turn{Workspace: ws, ID: *l.Turn, Queue: l.Queue, IssuedAt: *l.TurnAt}
		}
		if o.finish != nil {
			o.finished = finished[o.finish.Lease]
			o.finished.Turn = turn
			if o.finish.Next != nil {
				o.finished.Next = claimed[o.finish.Next.Lease]
			}
		} else {
			o.claimed = claimed[o.claim.Lease]
			o.claimed.Turn = turn
		}
		next[ws] = nil // one member enqueues it
	}
	return nil
}
