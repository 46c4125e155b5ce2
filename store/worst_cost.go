package store

import "fmt"

// What a workspace that pays nothing, or little, can cost at worst in a month: each term is a bound that something
// enforces, times what one of it costs us. Prices are ours to know and rounded up; a month has 31 days.

// What one costs, micro-dollars.
const (
	slotMinuteMicroUSD = 50      // a $40 machine with 20 slots
	requestMicroUSD    = 1       // API, Postgres, Redis: a thousandth of a CPU second, and the network
	gibMonthMicroUSD   = 150_000 // replicated disk and its backup
	letterMicroUSD     = 100

	// callOverrunMicroUSD is by how much one call may pass what was reserved for it: a context of 400,000 tokens that was
	// estimated at nothing, at the dearest input price of the cheap models.
	callOverrunMicroUSD = 200_000
)

// What bounds the quantities and stands elsewhere in the code.
const (
	monthHours = 31 * 24
	// MaxTaskBytes is more than a task's prompt, input and metadata can have together (api/tasks_json.go).
	MaxTaskBytes = 1 << 20
	keysKept     = 48 // hours that the answer to an Idempotency-Key is kept (scheduler.go)
	// lettersPerHour is how many letters one user can cause: tokens that prove and that reset, and the note that a
	// password was changed (api/limits.go).
	lettersPerHour = 2*mailsPerHour + 20
	// attemptBytes is an attempt's row and that of its agent time, with their indexes. What else an attempt leaves is bounded by
	// what it costs.
	attemptBytes = 1_000
	// outputBytesPerDollar is the text that a dollar buys at most: 2,500,000 tokens of the cheapest model, 32 bytes each.
	outputBytesPerDollar = 2_500_000 * 32
)

// CostTerm is one line of the table.
type CostTerm struct {
	What     string
	Bound    string // what enforces the quantity
	Quantity int64
	Unit     string
	MicroUSD int64 // at worst, per month
}

// WorstMonth is what one workspace of the plan can cost at worst in a month, term by term: any month, once as many tasks are
// stored as its retention keeps. Only metering rows stay for good, so a second month like the first costs them again.
func WorstMonth(p Plan) []CostTerm {
	hour, gib := int64(p.RequestsPerHour), func(bytes int64) int64 { return bytes * gibMonthMicroUSD >> 30 }
	slots, requests := int64(p.Concurrency)*monthHours*60, hour*monthHours
	// A task may wait as long as it likes, but no more than the backlog at once; then it is kept, and a day until it goes.
	taskBytes, keyBytes := (hour*24*int64(p.RetentionDays+1)+int64(p.MaxWaiting))*MaxTaskBytes, hour*keysKept*MaxTaskBytes
	months := int64(p.RetentionDays)/28 + 2 // that the kept days touch
	resultBytes := months * p.ProviderBudgetMicroUSD / 1_000_000 * outputBytesPerDollar
	keptTasks, keptResults := fmt.Sprintf("1 MiB each, a request each, %d days and a backlog", p.RetentionDays), fmt.Sprintf("what %d provider budgets write", months)
	attemptsBytes := requests * MaxAttemptsLimit * attemptBytes
	letters := int64(lettersPerHour*monthHours) + 4
	return []CostTerm{
		{"model calls", "provider budget, reserved before each call", p.ProviderBudgetMicroUSD, "micro-dollars", p.ProviderBudgetMicroUSD},
		{"calls past their reservation", "one call under way per slot", int64(p.Concurrency), "calls", int64(p.Concurrency) * callOverrunMicroUSD},
		{"slots, also of attempts that count for nothing", "concurrency, all month", slots, "minutes", slots * slotMinuteMicroUSD},
		{"requests, batches by their tasks", "requests per hour", requests, "requests", requests * requestMicroUSD},
		{"tasks kept", keptTasks, taskBytes >> 20, "MiB", gib(taskBytes)},
		{"attempts and their metering rows (each month again)", fmt.Sprintf("%d attempts per request", MaxAttemptsLimit), attemptsBytes >> 20, "MiB", gib(attemptsBytes)},
		{"answers kept for Idempotency-Keys", "48 hours of requests", keyBytes >> 20, "MiB", gib(keyBytes)},
		{"results kept", keptResults, resultBytes >> 20, "MiB", gib(resultBytes)},
		{"letters", "26 per hour, 4 notices", letters, "letters", letters * letterMicroUSD},
	}
}
