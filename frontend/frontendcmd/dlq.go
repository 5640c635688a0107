package frontendcmd

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/ask"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
)

// filterConfig chooses letters where no numbers are given.
type filterConfig struct {
	Model  string `env:"MODEL" usage:"only letters of this model"`
	Reason string `env:"REASON" usage:"only letters whose reason contains this text"`
}

// Validate has nothing to refuse: a model that is not there has no letters.
func (c *filterConfig) Validate() error { return nil }

func newDLQCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "Show dead letters, try them again or take them away",
		Long: `Dead letters are requests that were answered "poisoned": gpu-let processes died over them, or nobody
ever acknowledged them. They are kept for 24 hours, with their headers, the reason, and the last words
of the process that died.`,
	}
	cmd.AddCommand(newDLQListCommand(), newDLQShowCommand(), newDLQReplayCommand(), newDLQPurgeCommand())
	return cmd
}

// letter is a dead letter as it is printed. Field names are part of the commands' output.
type letter struct {
	Letter    uint64            `json:"letter"`
	Model     string            `json:"model"`
	RequestID string            `json:"request_id"`
	Reason    string            `json:"reason"`
	Buried    time.Time         `json:"buried"`
	Stored    time.Time         `json:"stored,omitzero"`
	Delivered int               `json:"delivered"`
	Attempt   int               `json:"attempt"`
	Gpulet    string            `json:"gpulet,omitempty"`
	LastWords string            `json:"last_words,omitempty"`
	Bytes     int               `json:"bytes"`
	Dropped   int               `json:"dropped_bytes,omitempty"`
	Headers   map[string]string `json:"headers,omitempty"` // of show
}

func printable(l bus.Letter) letter {
	return letter{
		Letter: l.Seq, Model: l.Model, RequestID: l.RequestID, Reason: l.Reason, Buried: l.Buried, Stored: l.Stored,
		Delivered: l.Delivered, Attempt: l.Attempt, Gpulet: l.Gpulet, LastWords: l.LastWords, Bytes: len(l.Body), Dropped: l.Dropped,
	}
}

// matching reads the letters that a filter lets through, oldest first.
func matching(ctx context.Context, b *bus.Bus, f filterConfig) ([]bus.Letter, error) {
	var list []bus.Letter
	for l, err := range b.DeadLetters(ctx, f.Model) {
		if err != nil {
			return nil, err
		}
		if strings.Contains(l.Reason, f.Reason) {
			list = append(list, l)
		}
	}
	return list, nil
}

// chosen are the letters of the given numbers, or, without any, those that the filter lets through. With
// neither, it has to be said that all are meant.
func chosen(ctx context.Context, b *bus.Bus, args []string, f filterConfig, all bool) ([]bus.Letter, error) {
	filtered := all || f != filterConfig{}
	if len(args) > 0 == filtered {
		return nil, cli.Usagef("expected numbers of letters, or --model, --reason or --all")
	}
	if filtered {
		return matching(ctx, b, f)
	}
	var list []bus.Letter
	for _, arg := range args {
		l, err := numbered(ctx, b, arg)
		if err != nil {
			return nil, err
		}
		list = append(list, l)
	}
	return list, nil
}

func numbered(ctx context.Context, b *bus.Bus, arg string) (bus.Letter, error) {
	seq, err := strconv.ParseUint(arg, 10, 64)
	if err != nil || seq == 0 {
		return bus.Letter{}, cli.Usagef("letter %q: expected a number of frontend dlq list", arg)
	}
	return b.DeadLetterAt(ctx, seq)
}

type dlqListConfig struct {
	DLQ    ask.Config
	Filter filterConfig
}

// Validate checks all settings.
func (c *dlqListConfig) Validate() error { return c.DLQ.Validate() }

func newDLQListCommand() *cobra.Command {
	cfg := &dlqListConfig{}
	return ask.Command(&cobra.Command{
		Use:   "list",
		Short: "List dead letters, oldest first",
		Example: `  frontend dlq list
  frontend dlq list --model resnet50 --reason 'exit status'
  frontend dlq list --json | jq '.[] | {letter, model, reason}'`,
	}, bus.RoleFrontend, cfg, &cfg.DLQ, func(ctx context.Context, b *bus.Bus, _ []string, out io.Writer) error {
		list, err := matching(ctx, b, cfg.Filter)
		if err != nil {
			return err
		}
		return printLetters(out, list, cfg.DLQ.JSON)
	})
}

func printLetters(out io.Writer, list []bus.Letter, asJSON bool) error {
	printed := make([]letter, 0, len(list))
	for _, l := range list {
		printed = append(printed, printable(l))
	}
	if asJSON {
		return cli.PrintJSON(out, printed)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LETTER\tMODEL\tREQUEST\tBURIED\tATTEMPT\tDELIVERED\tREASON")
	for _, l := range printed {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%d\t%d\t%s\n", l.Letter, l.Model, orDash(l.RequestID),
			l.Buried.UTC().Format(time.DateTime), l.Attempt, l.Delivered, l.Reason)
	}
	return w.Flush()
}

type dlqShowConfig struct {
	DLQ  ask.Config
	Body string `env:"BODY" usage:"file to write the request's body into"`
}

// Validate checks all settings.
func (c *dlqShowConfig) Validate() error { return c.DLQ.Validate() }

func newDLQShowCommand() *cobra.Command {
	cfg := &dlqShowConfig{}
	return ask.Command(&cobra.Command{
		Use:   "show LETTER",
		Short: "Show one dead letter: headers, reason, last words of the process that died",
		Args:  cobra.ExactArgs(1),
		Example: `  frontend dlq show 17
  frontend dlq show 17 --body request.msgpack`,
	}, bus.RoleFrontend, cfg, &cfg.DLQ, func(ctx context.Context, b *bus.Bus, args []string, out io.Writer) error {
		l, err := numbered(ctx, b, args[0])
		if err != nil {
			return err
		}
		if cfg.Body != "" {
			if err := os.WriteFile(cfg.Body, l.Body, 0o600); err != nil {
				return err
			}
		}
		p := printable(l)
		p.Headers = l.Header()
		if cfg.DLQ.JSON {
			return cli.PrintJSON(out, p)
		}
		return p.show(out)
	})
}

// show prints a letter for people.
func (l letter) show(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "letter\t%d, buried %s\n", l.Letter, l.Buried.UTC().Format(time.RFC3339))
	fmt.Fprintf(w, "request\t%s of %s, attempt %d, delivered %d times\n", orDash(l.RequestID), l.Model, l.Attempt, l.Delivered)
	fmt.Fprintf(w, "reason\t%s\n", l.Reason)
	if l.Gpulet != "" {
		fmt.Fprintf(w, "gpu-let\t%s\n", l.Gpulet)
	}
	if l.LastWords != "" {
		fmt.Fprintf(w, "last words\t%s\n", l.LastWords)
	}
	body := fmt.Sprintf("%d bytes", l.Bytes)
	if l.Dropped > 0 {
		body = fmt.Sprintf("dropped, it had %d bytes", l.Dropped)
	}
	fmt.Fprintf(w, "body\t%s\nheaders\t\n", body)
	keys := make([]string, 0, len(l.Headers))
	for k := range l.Headers {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(w, "  %s\t%s\n", k, l.Headers[k])
	}
	return w.Flush()
}

type dlqPurgeConfig struct {
	DLQ    ask.Config
	Filter filterConfig
	All    bool `env:"ALL" envDefault:"false" usage:"all letters"`
}

// Validate checks all settings.
func (c *dlqPurgeConfig) Validate() error { return c.DLQ.Validate() }

func newDLQPurgeCommand() *cobra.Command {
	cfg := &dlqPurgeConfig{}
	return ask.Command(&cobra.Command{
		Use:   "purge [LETTER...]",
		Short: "Take dead letters away",
		Args:  cobra.ArbitraryArgs,
		Example: `  frontend dlq purge 17 18
  frontend dlq purge --model resnet50
  frontend dlq purge --all`,
	}, bus.RoleFrontend, cfg, &cfg.DLQ, func(ctx context.Context, b *bus.Bus, args []string, out io.Writer) error {
		list, err := chosen(ctx, b, args, cfg.Filter, cfg.All)
		if err != nil {
			return err
		}
		for _, l := range list {
			if err := b.DeleteDeadLetter(ctx, l.Seq); err != nil {
				return err
			}
		}
		if cfg.DLQ.JSON {
			return cli.PrintJSON(out, map[string]int{"purged": len(list)})
		}
		_, err = fmt.Fprintf(out, "%d purged\n", len(list))
		return err
	})
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
