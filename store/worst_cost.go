package store

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

// WorstMonth is what one workspace of the plan can cost at worst in a month, term by term. What is stored stays: a
// second month like the first one costs it again, and again for every month that nothing removes old tasks.
func WorstMonth(p Plan) []CostTerm {
	hour, gib := int64(p.RequestsPerHour), func(bytes int64) int64 { return bytes * gibMonthMicroUSD >> 30 }
	slots, requests := int64(p.Concurrency)*monthHours*60, hour*monthHours
	taskBytes, keyBytes := requests*MaxTaskBytes, hour*keysKept*MaxTaskBytes
	resultBytes := p.ProviderBudgetMicroUSD / 1_000_000 * outputBytesPerDollar
	letters := int64(lettersPerHour*monthHours) + 4
	return []CostTerm{
		{"model calls", "provider budget, reserved before each call", p.ProviderBudgetMicroUSD, "micro-dollars", p.ProviderBudgetMicroUSD},
		{"calls past their reservation", "one call under way per slot", int64(p.Concurrency), "calls", int64(p.Concurrency) * callOverrunMicroUSD},
		{"slots, also of attempts that count for nothing", "concurrency, all month", slots, "minutes", slots * slotMinuteMicroUSD},
		{"requests, batches by their tasks", "requests per hour", requests, "requests", requests * requestMicroUSD},
		{"tasks kept (each month again)", "1 MiB each, a request each", taskBytes >> 20, "MiB", gib(taskBytes)},
		{"answers kept for Idempotency-Keys", "48 hours of requests", keyBytes >> 20, "MiB", gib(keyBytes)},
		{"results kept (each month again)", "what the provider budget writes", resultBytes >> 20, "MiB", gib(resultBytes)},
		{"letters", "26 per hour, 4 notices", letters, "letters", letters * letterMicroUSD},
	}
}
