package plannercmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/ask"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/plan"
)

type historyConfig struct {
	Online ask.Config
	Diff   bool `env:"DIFF" envDefault:"false" usage:"show what each plan changed"`
}

func newHistoryCommand() *cobra.Command {
	cfg := &historyConfig{}
	return ask.Command(&cobra.Command{
		Use:   "history",
		Short: "Show the last plans, at most 16, and why each was made",
		Example: `  planner history
  planner history --diff
  planner history --json | jq '.[-1]'`,
	}, bus.RolePlanner, cfg, &cfg.Online, func(ctx context.Context, b *bus.Bus, _ []string, out io.Writer) error {
		plans, err := b.PlanHistory(ctx)
		if err != nil {
			return fmt.Errorf("read the plans: %w", err)
		}
		if cfg.Online.JSON {
			return cli.PrintJSON(out, plans)
		}
		return printHistory(out, plans, cfg.Diff, time.Now())
	})
}

func printHistory(out io.Writer, plans []plan.Plan, diff bool, now time.Time) error {
	if len(plans) == 0 {
		_, err := fmt.Fprintln(out, "no plan yet")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REVISION\tAGE\tALGORITHM\tGPUS\tDESIRED\tGPU-LETS\tMOVES\tREASON")
	var before plan.Plan
	for i, p := range plans {
		change, moves := plan.Diff(before, p), "-"
		if i > 0 || p.Revision == 1 {
			moves = strconv.Itoa(change.Moves())
		}
		reason := p.Reason
		if p.Pinned {
			reason += " (pinned)"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", p.Revision, ago(p.Created, now), p.Algorithm, p.GPUsUsed, p.DesiredGPUs, len(p.Gpulets), moves, reason)
		if diff && i > 0 {
			w.Flush()
			fmt.Fprint(out, change)
		}
		before = p
	}
	return w.Flush()
}

type rollbackConfig struct {
	Online ask.Config
	Resume bool `env:"RESUME" envDefault:"false" usage:"take the pin away: planning goes on"`
}

func newRollbackCommand() *cobra.Command {
	cfg := &rollbackConfig{}
	return ask.Command(&cobra.Command{
		Use:   "rollback REV",
		Short: "Publish an old plan as a new revision and pin it",
		Long: `Publishes the plan of revision REV again, as a new revision. It stays pinned: planner run keeps
watching and reporting, but replaces it only after planner rollback --resume.`,
		Example: `  planner history
  planner rollback 17
  planner rollback --resume`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || cfg.Resume == (len(args) == 1) {
				return cli.Usagef("expected either a revision or --resume")
			}
			return nil
		},
	}, bus.RolePlanner, cfg, &cfg.Online, func(ctx context.Context, b *bus.Bus, args []string, out io.Writer) error {
		next, err := publishAgain(ctx, b, args)
		if err != nil {
			return err
		}
		if cfg.Online.JSON {
			return cli.PrintJSON(out, next)
		}
		_, err = fmt.Fprintf(out, "revision %d published: %s\n", next.Revision, next.Reason)
		return err
	})
}

// publishAgain publishes the plan of the revision in args, pinned, or without args the current one,
// free.
func publishAgain(ctx context.Context, b *bus.Bus, args []string) (plan.Plan, error) {
	return publish(ctx, b, func(current plan.Plan) (plan.Plan, error) {
		if len(args) == 0 {
			return resumed(current)
		}
		plans, err := b.PlanHistory(ctx)
		if err != nil {
			return plan.Plan{}, err
		}
		return rolledBack(plans, args[0])
	})
}

// publish makes a plan from the current one and publishes it as the next revision. A planner that
// publishes at the same moment wins once; then the plan is made again, from what it published. The
// term stays: an operator takes no planner's place.
func publish(ctx context.Context, b *bus.Bus, make func(current plan.Plan) (plan.Plan, error)) (plan.Plan, error) {
	for {
		current, rev, err := b.GetPlan(ctx)
		if err != nil {
			return plan.Plan{}, fmt.Errorf("read the plan: %w", err)
		}
		next, err := make(current)
		if err != nil {
			return plan.Plan{}, err
		}
		next.Revision, next.Term, next.Created = current.Revision+1, current.Term, time.Now().UTC()
		if _, err = b.PutPlan(ctx, next, rev); err == nil {
			return next, nil
		}
		if !errors.Is(err, bus.ErrConflict) || ctx.Err() != nil {
			return plan.Plan{}, fmt.Errorf("publish: %w", err)
		}
	}
}

func resumed(current plan.Plan) (plan.Plan, error) {
	if !current.Pinned {
		return plan.Plan{}, fmt.Errorf("revision %d is not pinned: there is nothing to resume", current.Revision)
	}
	current.Pinned = false
	current.Reason = "the pin was taken away"
	return current, nil
}

// rolledBack finds a plan of the history. Gpu-lets that it shares with no later plan come back under
// their old ids: an id stands for a place and a share, and those are the same.
func rolledBack(plans []plan.Plan, revision string) (plan.Plan, error) {
	n, err := strconv.ParseUint(revision, 10, 64)
	if err != nil {
		return plan.Plan{}, cli.Usagef("revision %q: expected a whole number", revision)
	}
	i := slices.IndexFunc(plans, func(p plan.Plan) bool { return p.Revision == n })
	if i < 0 {
		if len(plans) == 0 {
			return plan.Plan{}, fmt.Errorf("revision %d: there is no plan yet", n)
		}
		return plan.Plan{}, fmt.Errorf("revision %d: not kept: expected one of %d to %d (planner history)", n, plans[0].Revision, plans[len(plans)-1].Revision)
	}
	p := plans[i]
	p.Pinned = true
	p.Reason = fmt.Sprintf("rolled back to revision %d", n)
	return p, nil
}
