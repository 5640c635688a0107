package main

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/plan"
)

// burstsConfig is the configuration of evaluate bursts.
type burstsConfig struct {
	Load  loadConfig
	Rates string `env:"RATES" usage:"what to try, mix=samples/s separated by spaces; a mix may come again"`
	Rules string `env:"RULES" envDefault:"plan none 40/1 40/4 60/4" usage:"rules to compare, separated by spaces: plan (as planned), none, mps (its plan), or LIMIT/BATCH: 40/4, or 40+20/4x1.5 for 20 percent beyond the share and 1.5 times the planned batch where that is more"`

	points []point
	rules  []rule
}

// point is one mix at one rate.
type point struct {
	mix  string
	rate float64 // samples/s
}

// rule is how far gpu-lets may go beyond what they are promised.
type rule struct {
	name   string
	keep   bool // what the plan says
	limit  int  // percent of the GPU, or
	beyond int  // as much beyond the share
	batch  int  // samples, or
	times  float64
}

// Validate reports the first setting that makes no sense.
func (c *burstsConfig) Validate() error {
	for part := range strings.FieldsSeq(c.Rates) {
		starts, err := parseStarts(part)
		if err != nil {
			return fmt.Errorf("rates: %w", err)
		}
		for mix, rate := range starts {
			c.points = append(c.points, point{mix, rate})
		}
	}
	if len(c.points) == 0 {
		return fmt.Errorf("rates %q: expected mix=samples/s", c.Rates)
	}
	for text := range strings.FieldsSeq(c.Rules) {
		r, err := parseRule(text)
		if err != nil {
			return err
		}
		c.rules = append(c.rules, r)
	}
	if len(c.rules) == 0 {
		return fmt.Errorf("rules %q: expected plan, none, mps, or LIMIT/BATCH", c.Rules)
	}
	return c.Load.Validate()
}

// ruleRE matches LIMIT[+BEYOND]/BATCH[xTIMES].
var ruleRE = regexp.MustCompile(`^(\d{1,3})(?:\+(\d{1,3}))?/(\d{1,4})(?:x(\d{1,3}(?:\.\d+)?))?$`)

// parseRule reads plan, none, mps or what ruleRE matches.
func parseRule(text string) (rule, error) {
	switch text {
	case "plan", "mps":
		return rule{name: text, keep: true}, nil
	case "none":
		return rule{name: text}, nil
	}
	m := ruleRE.FindStringSubmatch(text)
	if m == nil {
		return rule{}, fmt.Errorf("rule %q: expected plan, none, mps, or LIMIT/BATCH as 40/4 or 40+20/4x1.5", text)
	}
	r := rule{name: text} // what is not there is 0
	r.limit, _ = strconv.Atoi(m[1])
	r.beyond, _ = strconv.Atoi(m[2])
	r.batch, _ = strconv.Atoi(m[3])
	r.times, _ = strconv.ParseFloat(m[4], 64)
	return r, nil
}

// apply sets limits and bursts of a plan.
func (r rule) apply(p plan.Plan) plan.Plan {
	if r.keep {
		return p
	}
	p.Gpulets = slices.Clone(p.Gpulets)
	for i := range p.Gpulets {
		g := &p.Gpulets[i]
		if g.Limit = min(max(r.limit, g.Share+r.beyond), 100); g.Limit <= g.Share {
			g.Limit = 0
		}
		g.Models = slices.Clone(g.Models)
		for k := range g.Models {
			a := &g.Models[k]
			if a.Burst = max(r.batch, int(math.Ceil(r.times*float64(a.Batch)))); a.Burst <= a.Batch {
				a.Burst = 0
			}
		}
	}
	return p
}

func newBurstsCommand() *cobra.Command {
	cfg := &burstsConfig{}
	return experiment(&cobra.Command{
		Use:   "bursts",
		Short: "Compare how far gpu-lets may go beyond what they are promised",
		Long: `For every mix at a rate, plans of gpulet whose gpu-lets may use more of the GPU than their share, and run
larger batches than planned while more wait, by one rule after the other under the same load.`,
		Example: `  evaluate bursts --device cuda:0 --rates "scen1=5700 game=44000" --rules "plan none 40+20/4x1.5 mps" --warmup 3s`,
	}, cfg, &cfg.Load.Common, func(ctx context.Context) error { return bursts(ctx, cfg) })
}

// burstsFound is what was found at one point.
type burstsFound struct {
	About about          `json:"about"`
	Mix   string         `json:"mix"`
	Rate  float64        `json:"rate_rps"`
	Tries map[string]try `json:"tries"` // by rule
}

// bursts measures every point that is not there yet.
func bursts(ctx context.Context, cfg *burstsConfig) error {
	ctx, cancel := context.WithDeadlineCause(ctx, cfg.Load.Common.deadline, errBudget)
	defer cancel()
	var mixes []string
	for _, at := range cfg.points {
		mixes = append(mixes, at.mix)
	}
	e, stop, err := newEvaluation(ctx, &cfg.Load, mixes)
	if err != nil {
		return err
	}
	defer stop()
	if err := e.site.serveWith(ctx, nil); err != nil {
		return err
	}
	asked := map[string]*attempt{}
	for _, at := range cfg.points {
		file := filepath.Join("bursts", fmt.Sprintf("%s-%.0f.json", fileName(at.mix), at.rate))
		if there, err := cfg.Load.Common.read(file, &burstsFound{}); err != nil {
			return err
		} else if there {
			continue
		}
		found := burstsFound{About: e.about, Mix: at.mix, Rate: at.rate, Tries: map[string]try{}}
		for _, r := range cfg.rules {
			t, err := e.tryRule(ctx, asked, at, r)
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil:
				return fmt.Errorf("%s at %.0f samples/s, rule %s: %w", at.mix, at.rate, r.name, err)
			}
			say("%s %8.0f samples/s, %s: %s", at.mix, at.rate, r.name, t.Why)
			found.Tries[r.name] = t
		}
		if err := cfg.Load.Common.write(file, found); err != nil {
			return err
		}
	}
	return nil
}

// tryRule measures a point under a rule. What the planner says of a mix at all rates is asked once, and kept
// in asked.
func (e *evaluation) tryRule(ctx context.Context, asked map[string]*attempt, at point, r rule) (try, error) {
	a, change := arms[0], r.apply
	if r.name == "mps" {
		// The worker stays as it is: a limit of the whole GPU is no limit.
		a, change = arm{apart: true}, rule{limit: 100, batch: 1}.apply
	}
	key := at.mix + " " + a.algorithm
	x := asked[key]
	if x == nil {
		parts, _ := parseMix(at.mix) // Validate has read it
		slos, err := e.slos(parts)
		if err != nil {
			return try{}, err
		}
		x = &attempt{evaluation: e, arm: a, parts: parts, slos: slos}
		if err := x.prepare(ctx); err != nil {
			return try{}, err
		}
		asked[key] = x
	}
	x.change = change
	return x.try(ctx, at.rate)
}
