package steppedclock

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// The tests' program is also the process whose clock is stepped: it says what time it is, and how long it has run by the
// monotonic clock, for each line it reads.
func TestMain(m *testing.M) {
	if os.Getenv(Variable) == "" {
		os.Exit(m.Run())
	}
	began := time.Now()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		now := time.Now()
		fmt.Println(now.UnixMilli(), now.Sub(began).Milliseconds(), time.Since(began.Round(0)).Milliseconds())
	}
}

func TestTheWallClockIsSteppedAndTheMonotonicOneIsNot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ahead")
	set := func(seconds string) {
		if err := os.WriteFile(file, []byte(seconds), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set("0")
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{Variable + "=" + file}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = cmd.Wait()
	}()
	const slack = int64(time.Second / time.Millisecond)
	ask := func() (ahead, beyond, byWall int64) {
		var wall, mono int64
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fscan(out, &wall, &mono, &byWall); err != nil {
			t.Fatal(err)
		}
		return wall - time.Now().UnixMilli(), mono - time.Since(start).Milliseconds(), byWall - mono
	}
	for _, seconds := range []int64{0, 60, -60, 3600, 0} {
		set(fmt.Sprint(seconds))
		var ahead, beyond, byWall int64
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if ahead, beyond, byWall = ask(); (ahead-seconds*1000 > -slack && ahead-seconds*1000 < slack) || time.Now().After(deadline) {
				break
			}
		}
		if ahead-seconds*1000 < -slack || ahead-seconds*1000 > slack || byWall-seconds*1000 < -slack || byWall-seconds*1000 > slack {
			t.Errorf("set to %d s: the clock is %d ms ahead, and a span without a monotonic reading is %d ms longer", seconds, ahead, byWall)
		}
		if beyond > slack || beyond < -10*slack { // it started a moment after this test's clock did
			t.Errorf("set to %d s: the monotonic clock went %d ms wrong", seconds, beyond)
		}
	}
}
