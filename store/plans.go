package store

// Plan is what a workspace may use. Plans are data: nothing else in Muster asks which plan a workspace has; a plan's
// limits are copied to the workspace when it is chosen, so that hot paths read one row and an operator's override is
// just another value.
type Plan struct {
	ID                     string // as in the API: free, starter, growth, pro
	Name                   string
	PriceCents             int64  // US cents per month
	AgentMS                int64  // included agent time per UTC month, milliseconds
	RequestsPerHour        int    // API requests in any rolling hour
	Concurrency            int    // leases at once
	MaxWaiting             int    // tasks waiting at once, scheduled ones included
	MaxUsers               int    // members; 0 is unlimited
	MaxWebhooks            int    // endpoints that are told of tasks
	MaxSchedules           int    // cron schedules
	MinScheduleSeconds     int    // between two occurrences of a schedule; none come closer than 60
	ProviderBudgetMicroUSD int64  // model cost per UTC month
	MaxTaskCostMicroUSD    int64  // model cost of one task, all its attempts together
	Queue                  string // the tier its turns stand in
	RetentionDays          int    // how long ended tasks are kept; 0 is for ever

	// Models are the models that tasks may run on, in the order in which auto prefers them: provider/model, where "*"
	// at the end stands for anything. Empty: all.
	Models []string
	// NeedsVerifiedEmail: an owner must have proved their address before the first task, where the operator asks for it.
	NeedsVerifiedEmail bool
	// ExpectedCostMicroUSD is what a workspace is expected to cost at model providers per UTC month; one past twice of
	// it wants a look.
	ExpectedCostMicroUSD int64
}

// The tiers' queues, as load rows and Asynq name them.
const (
	QueuePro     = "pro"
	QueueStarter = "starter"
	QueueFree    = "free"
)

// Queues lists the tiers, most paid first.
var Queues = []string{QueuePro, QueueStarter, QueueFree}

const minuteMS = 60_000

// cheapModels are the models of the price list that cost at most $2.50 per million output tokens, long prompts included; a test compares.
var cheapModels = []string{"anthropic/claude-haiku-5-5", "openai/gpt-6-luna", "openai/gpt-5-nano", "openai/gpt-5-mini", "openai/gpt-4.1-nano",
	"openai/gpt-4.1-mini", "openai/gpt-4o-mini"}

// Plans is the one table of plans, cheapest first. Prices are list prices; tasks run at most five minutes on each.
var Plans = []Plan{
	{ID: "free", Name: "Free", PriceCents: 0, AgentMS: 1_000 * minuteMS, RequestsPerHour: 100, Concurrency: 1, MaxWaiting: 1_000, MaxUsers: 1, MaxWebhooks: 1, MaxSchedules: 5, MinScheduleSeconds: 900, ProviderBudgetMicroUSD: 1_000_000, MaxTaskCostMicroUSD: 500_000, Queue: QueueFree, RetentionDays: 30,
		Models: cheapModels, NeedsVerifiedEmail: true, ExpectedCostMicroUSD: 200_000},
	{ID: "starter", Name: "Starter", PriceCents: 4_900, AgentMS: 10_000 * minuteMS, RequestsPerHour: 1_000, Concurrency: 3, MaxWaiting: 10_000, MaxUsers: 5, MaxWebhooks: 3, MaxSchedules: 50, MinScheduleSeconds: 60, ProviderBudgetMicroUSD: 15_000_000, MaxTaskCostMicroUSD: 3_000_000, Queue: QueueStarter, RetentionDays: 90, ExpectedCostMicroUSD: 6_000_000},
	{ID: "growth", Name: "Growth", PriceCents: 9_900, AgentMS: 50_000 * minuteMS, RequestsPerHour: 5_000, Concurrency: 5, MaxWaiting: 50_000, MaxUsers: 20, MaxWebhooks: 10, MaxSchedules: 200, MinScheduleSeconds: 60, ProviderBudgetMicroUSD: 35_000_000, MaxTaskCostMicroUSD: 5_000_000, Queue: QueueStarter, RetentionDays: 180, ExpectedCostMicroUSD: 15_000_000},
	{ID: "pro", Name: "Pro", PriceCents: 14_900, AgentMS: 100_000 * minuteMS, RequestsPerHour: 10_000, Concurrency: 10, MaxWaiting: 200_000, MaxUsers: 0, MaxWebhooks: 20, MaxSchedules: 1_000, MinScheduleSeconds: 60, ProviderBudgetMicroUSD: 60_000_000, MaxTaskCostMicroUSD: 10_000_000, Queue: QueuePro, RetentionDays: 365, ExpectedCostMicroUSD: 25_000_000},
}

// PlanByID finds a plan; ok is false when there is none of that id.
func PlanByID(id string) (p Plan, ok bool) {
	for _, p := range Plans {
		if p.ID == id {
			return p, true
		}
	}
	return Plan{}, false
}
