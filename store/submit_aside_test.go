package store_test

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// What a flush leaves out, and what became of it before.

// forgetful passes connections on to a database until it is armed: then it takes the next answer and ends that connection.
type forgetful struct {
	net.Listener
	armed atomic.Bool
	took  atomic.Int64 // answers
}

func newForgetful(t *testing.T, databaseURL string) (f *forgetful, throughURL string) {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	server := u.Host
	f = &forgetful{}
	if f.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	go func() {
		for {
			client, err := f.Accept()
			if err != nil {
				return
			}
			go f.pass(client, server)
		}
	}()
	u.Host = f.Addr().String()
	return f, u.String()
}

func (f *forgetful) pass(client net.Conn, server string) {
	defer client.Close()
	s, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer s.Close()
	go func() { _, _ = io.Copy(s, client) }()
	for buf := make([]byte, 64<<10); ; {
		n, err := s.Read(buf)
		if err != nil {
			return
		}
		if f.armed.CompareAndSwap(true, false) {
			f.took.Add(1)
			return
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

// database/sql sends a statement anew on another connection when its own ends: also when the first had been committed.
func TestASubmitWhoseAnswerIsLostIsRecognised(t *testing.T) {
	t.Parallel()
	for name, tasks := range map[string][]store.NewTask{
		"Together": {task("first"), task("second")},
		"Alone":    {task(strings.Repeat("x", 40<<10))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			ws := storetest.NewWorkspace(t, l.env, "pro")
			between, through := newForgetful(t, l.env.APIURL)
			db, err := store.Open(t.Context(), through, 4)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			between.armed.Store(true)
			views, turns, err := store.NewAPI(db).Submit(t.Context(), ws, tasks)
			if err != nil {
				t.Fatal(err)
			}
			if between.took.Load() != 1 {
				t.Fatal("no answer was lost: the test tests nothing")
			}
			if n := l.count(`SELECT count(*) FROM tasks`); n != int64(len(tasks)) || len(views) != len(tasks) {
				t.Fatalf("%d tasks are stored and %d were shown, %d were sent", n, len(views), len(tasks))
			}
			for i, v := range views {
				read, err := l.api.Task(t.Context(), ws, v.ID)
				if err != nil || read.Prompt != tasks[i].Prompt || v.Waiting == nil || *read.Waiting != *v.Waiting {
					t.Errorf("task %d: shown %+v, read %+v (%v)", i, v.Waiting, read.Waiting, err)
				}
			}
			if n := l.count(`SELECT count(*) FROM workspace_load WHERE turn IS NOT NULL AND waiting = $1`, len(tasks)); n != 1 || len(turns) != 1 {
				t.Errorf("%d turns to enqueue, %d in the ledger", len(turns), n)
			}
		})
	}
}

// However many submits meet a held row, they take one connection, keep nobody else waiting, and go on together.
func TestSubmitsOfAHeldWorkspaceWaitTogether(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	db, err := store.Open(t.Context(), l.env.APIURL, 6)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	api := store.NewAPI(db)
	held := storetest.NewWorkspace(t, l.env, "pro")
	release := l.hold(store.ClaimedTask{Workspace: held})
	defer release()

	const senders = 60
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := map[uuid.UUID]bool{}
	for i := range senders {
		wg.Go(func() {
			views, _, err := api.Submit(t.Context(), held, []store.NewTask{task(fmt.Sprint(i))})
			if err != nil {
				t.Errorf("behind the held row: %v", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[views[0].ID] = true
		})
	}
	eventually(t, "all to wait aside", func() bool { return api.SubmitsAside(held) >= senders-48 && api.SubmitsInLanes() == 0 })
	for range 20 { // on both lanes, while the row is held
		if _, _, err := api.Submit(t.Context(), storetest.NewWorkspace(t, l.env, "free"), []store.NewTask{task("x")}); err != nil {
			t.Error(err)
		}
	}
	if n := l.count(`SELECT count(*) FROM pg_stat_activity WHERE usename = 'muster_api' AND wait_event_type = 'Lock' AND datname = current_database()`); n > 1 {
		t.Errorf("%d connections wait for one row", n)
	}
	release()
	wg.Wait()
	if n := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, held); n != senders || len(ids) != senders {
		t.Errorf("%d tasks of %d submits, %d of them shown", n, senders, len(ids))
	}
	// One may have come first, and what it left behind in groups: far fewer transactions than submits.
	if n := l.count(`SELECT count(DISTINCT created_at) FROM tasks WHERE workspace_id = $1`, held); n > 10 {
		t.Errorf("%d transactions for %d submits", n, senders)
	}
	storetest.CheckLedger(t, l.env)
}
