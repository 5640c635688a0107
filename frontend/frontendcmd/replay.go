package frontendcmd

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/ask"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/wire"
)

type dlqReplayConfig struct {
	DLQ    ask.Config
	Filter filterConfig
	All    bool `env:"ALL" envDefault:"false" usage:"all letters"`
	// Answer is how long to wait for the answers of all that were replayed.
	Answer time.Duration `env:"ANSWER" envDefault:"60s" usage:"how long to wait for the answers"`
	// Detach leaves the answers to whoever reads results.
	Detach bool `env:"DETACH" envDefault:"false" usage:"do not wait: the answers are stored as results, under their request ids"`
	Keep   bool `env:"KEEP" envDefault:"false" usage:"keep the letters of requests that were answered"`
}

// Validate names the first setting that is out of range.
func (c *dlqReplayConfig) Validate() error {
	if c.Answer <= 0 {
		return fmt.Errorf("answer %v: expected more than 0", c.Answer)
	}
	return c.DLQ.Validate()
}

func newDLQReplayCommand() *cobra.Command {
	cfg := &dlqReplayConfig{}
	return ask.Command(&cobra.Command{
		Use:   "replay [LETTER...]",
		Short: "Try dead letters again, once what killed is mended",
		Long: `Publishes the requests again, each as its next attempt, which no de-duplication takes for an earlier one,
and with the model's own timeout. The answers come here, not to the clients that were answered "poisoned".
A letter goes when its request is answered ok (with --detach: when it is in its queue), unless --keep. A
request that still kills may bring down two gpu-let processes more; its new letter takes the old one's place.
Exits 1 unless all were answered ok.`,
		Args: cobra.ArbitraryArgs,
		Example: `  frontend dlq replay 17
  frontend dlq replay --model resnet50
  frontend dlq replay --all --detach`,
	}, bus.RoleFrontend, cfg, &cfg.DLQ, func(ctx context.Context, b *bus.Bus, args []string, out io.Writer) error {
		list, err := chosen(ctx, b, args, cfg.Filter, cfg.All)
		if err != nil {
			return err
		}
		replays, err := replayAll(ctx, b, cfg, list)
		if err != nil {
			return err
		}
		return report(out, replays, cfg.DLQ.JSON)
	})
}

// replay is what became of a letter. Field names are part of the command's output.
type replay struct {
	Letter    uint64 `json:"letter"`
	Model     string `json:"model"`
	RequestID string `json:"request_id"`
	Attempt   int    `json:"attempt"`
	Status    string `json:"status"` // of the reply; "queued": detached; "unanswered": none came; "refused": not published
	Detail    string `json:"detail,omitempty"`
}

const (
	statusQueued     = "queued"
	statusUnanswered = "unanswered"
	statusRefused    = "refused"
)

// replayAll publishes the letters one after the other, waits for the answers and takes away what is done.
func replayAll(ctx context.Context, b *bus.Bus, cfg *dlqReplayConfig, list []bus.Letter) ([]*replay, error) {
	answers := make(chan bus.Reply, 2*len(list)+1) // delivery is at least once
	inbox, err := b.NewInbox(func(r bus.Reply) {
		select {
		case answers <- r:
		default: // a further copy
		}
	})
	if err != nil {
		return nil, err
	}
	defer inbox.Close()
	replays, waiting := make([]*replay, 0, len(list)), map[string]*replay{}
	for _, l := range list {
		r := &replay{Letter: l.Seq, Model: l.Model, RequestID: l.RequestID, Attempt: l.Attempt + 1, Status: statusUnanswered}
		replays = append(replays, r)
		token := strconv.FormatUint(l.Seq, 10)
		to := inbox.Address(token)
		if cfg.Detach {
			to = ""
		}
		m, err := l.Replay(to)
		if err == nil {
			err = b.Publish(ctx, m)
		}
		switch {
		case err != nil:
			r.Status, r.Detail = statusRefused, err.Error()
		case cfg.Detach:
			r.Status = statusQueued
		default:
			waiting[token] = r
		}
	}
	await(ctx, cfg.Answer, answers, waiting)
	for _, r := range replays {
		if (r.done() || r.Status == string(wire.Poisoned)) && !cfg.Keep {
			if err := b.DeleteDeadLetter(ctx, r.Letter); err != nil {
				return replays, err
			}
		}
	}
	return replays, nil
}

// await notes the answers of those that wait, until all have come or it has taken too long.
func await(ctx context.Context, limit time.Duration, answers <-chan bus.Reply, waiting map[string]*replay) {
	late := time.NewTimer(limit)
	defer late.Stop()
	for len(waiting) > 0 {
		select {
		case a := <-answers:
			r := waiting[a.Token]
			if r == nil {
				continue
			}
			delete(waiting, a.Token)
			reply, err := wire.DecodeReply(a.Get, a.Body)
			r.Status, r.Detail = string(reply.Status), reply.Detail
			if err != nil {
				r.Status, r.Detail = string(wire.Failed), err.Error()
			}
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (r *replay) done() bool { return r.Status == string(wire.StatusOK) || r.Status == statusQueued }

func report(out io.Writer, replays []*replay, asJSON bool) error {
	failed := 0
	for _, r := range replays {
		if !r.done() {
			failed++
		}
	}
	err := error(nil)
	if asJSON {
		err = cli.PrintJSON(out, replays)
	} else {
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "LETTER\tMODEL\tREQUEST\tATTEMPT\tSTATUS\tDETAIL")
		for _, r := range replays {
			fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\n", r.Letter, r.Model, orDash(r.RequestID), r.Attempt, r.Status, r.Detail)
		}
		err = w.Flush()
	}
	if err == nil && failed > 0 {
		err = cli.WithCode(cli.ExitFailed, nil)
	}
	return err
}
