package main

import (
	"os/exec"
	"testing"
)

// Busy children, and grandchildren whose parent has gone, are ours and no strangers.
func TestWhatChildrenUseIsOurs(t *testing.T) {
	const busy = `end=$(($(date +%s%N) + 400000000)); while [ "$(date +%s%N)" -lt "$end" ]; do :; done`
	for name, script := range map[string]string{"a child": busy, "an orphan": "(" + busy + "; echo done) &"} {
		t.Run(name, func(t *testing.T) {
			before := readCPU()
			out, err := exec.Command("bash", "-c", script).CombinedOutput() // ends when nobody holds the pipe any more
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			after := readCPU()
			if used := after.ours - before.ours; used < 2 {
				t.Errorf("0.4 s of busy work count as %.0f hundredths of a second", used)
			}
		})
	}
}
