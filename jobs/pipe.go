package jobs

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// Pipe is a Redis client whose scripts share round trips: what is asked for while one is under way goes out with the next.
// Asynq runs one script for each message that it takes in or gives up, each with a round trip of its own, and the system
// calls for it cost more than the script.
type Pipe struct {
	redis.UniversalClient
	scripts chan *script
}

// script is an EVALSHA on its way.
type script struct {
	sha  string
	keys []string
	args []any
	cmd  *redis.Cmd
	done chan struct{} // closed when cmd is set and has its answer
}

// maxPipe bounds how many scripts share a round trip.
const maxPipe = 128

// NewPipe starts a pipe on a client that the caller keeps and closes. Close ends it; nothing may be asked after.
func NewPipe(rdb redis.UniversalClient) *Pipe {
	p := &Pipe{UniversalClient: rdb, scripts: make(chan *script, maxPipe)}
	go p.run()
	return p
}

// Close ends the pipe and leaves the client underneath open.
func (p *Pipe) Close() error {
	close(p.scripts)
	return nil
}

// EvalSha runs the script in company. With a context that ends before the answer the outcome is unknown, as ever.
func (p *Pipe) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	s := &script{sha: sha, keys: keys, args: args, done: make(chan struct{})}
	select {
	case p.scripts <- s:
	case <-ctx.Done():
		return failed(ctx)
	}
	select {
	case <-s.done:
		return s.cmd
	case <-ctx.Done():
		return failed(ctx)
	}
}

func failed(ctx context.Context) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(ctx.Err())
	return cmd
}

func (p *Pipe) run() {
	batch := make([]*script, 0, maxPipe)
	for first := range p.scripts {
		batch = append(batch[:0], first)
	collect:
		for len(batch) < maxPipe {
			select {
			case s, ok := <-p.scripts:
				if !ok {
					break collect
				}
				batch = append(batch, s)
			default:
				break collect
			}
		}
		ctx := context.Background()                                // the client's own timeouts bound it
		_, _ = p.Pipelined(ctx, func(pipe redis.Pipeliner) error { // each answer has its own error
			for _, s := range batch {
				s.cmd = pipe.EvalSha(ctx, s.sha, s.keys, s.args...)
			}
			return nil
		})
		for _, s := range batch {
			close(s.done)
		}
	}
}
