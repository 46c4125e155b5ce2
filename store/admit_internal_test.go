package store

import (
	"testing"
	"time"

	"github.com/google/uuid"
)

// A slot that goes on in the transaction that uses a turn leaves the last task to the turn, which would be delivered for
// nothing otherwise.
func TestASlotThatGoesOnLeavesTheLastTaskToATurn(t *testing.T) {
	t.Parallel()
	ws := uuid.New()
	goesOn := &Claim{Workspace: ws, Lease: uuid.New()}
	turn := &Claim{Workspace: ws, Lease: uuid.New(), Turn: uuid.New()}
	for tasks, want := range [][]uuid.UUID{{}, {turn.Lease}, {turn.Lease, goesOn.Lease}} {
		l := &load{Workspace: ws, Cap: 3, QuotaMS: time.Hour.Milliseconds(), Waiting: tasks}
		best := map[uuid.UUID][]runnable{}
		for range tasks {
			best[ws] = append(best[ws], runnable{Workspace: ws, Task: uuid.New(), TimeoutMS: 1000})
		}
		admitted := admit(map[uuid.UUID]*load{ws: l}, best, []*Claim{goesOn, turn})
		if len(admitted) != len(want) {
			t.Fatalf("%d of %d tasks admitted", len(admitted), tasks)
		}
		for i, a := range admitted {
			if a.lease != want[i] {
				t.Errorf("of %d tasks the %dth is another's", tasks, i+1)
			}
		}
	}
}
