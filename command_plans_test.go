package main

import (
	"context"
	"strings"
	"testing"
)

// TestOperationsShowsWhatFreeCosts holds the document's table against the code's.
func TestOperationsShowsWhatFreeCosts(t *testing.T) {
	t.Parallel()
	nothing := func(string) string { return "" }
	var out, errs strings.Builder
	if code := run(context.Background(), []string{"plans", "--cost", "free"}, nothing, &out, &errs); code != 0 {
		t.Fatal(errs.String())
	}
	if !strings.Contains(readDoc(t, "docs/operations.md"), "$ muster plans --cost free\n"+out.String()) {
		t.Errorf("docs/operations.md shows another table than\n%s", out.String())
	}
	out.Reset()
	if code := run(context.Background(), []string{"plans"}, nothing, &out, &errs); code != 0 || strings.Count(out.String(), "\n") != 5 {
		t.Errorf("%d: %s", code, out.String())
	}
	if code := run(context.Background(), []string{"plans", "--cost", "gold"}, nothing, &out, &errs); code != 2 {
		t.Errorf("an unknown plan: %d", code)
	}
}
