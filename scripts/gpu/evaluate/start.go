package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/wire"
)

type startConfig struct {
	Common config
	On     string `env:"START_ON" envDefault:"resnet50 googlenet mobilenet_v2 vgg16 bert" usage:"models that new gpu-lets serve, in turn, separated by spaces"`
	Count  int    `env:"START_COUNT" envDefault:"10" usage:"gpu-lets to start"`
	// Pause lets the host settle, as plans do that follow each other by an epoch.
	Pause time.Duration `env:"START_PAUSE" envDefault:"2s" usage:"time between the end of a gpu-let and the start of the next"`
	Share int           `env:"START_SHARE" envDefault:"50" usage:"share of the new gpu-let, percent"`
}

// startResult is how long new gpu-lets take to answer.
type startResult struct {
	About  about       `json:"about"`
	Starts []startTime `json:"starts"`
	// MedianS is of AnswerS.
	MedianS float64 `json:"median_s"`
}

// startTime is one new gpu-let, from the publishing of its plan to its first answer; seconds.
type startTime struct {
	Model   string  `json:"model"`
	Share   int     `json:"share"`
	AnswerS float64 `json:"answer_s"` // all of it
	// Stages, which add up to AnswerS.
	NoticedS float64 `json:"noticed_s"` // until the agent starts a process
	ProcessS float64 `json:"process_s"` // until the program runs
	EngineS  float64 `json:"engine_s"`  // opening the engine: libraries, device
	ConnectS float64 `json:"connect_s"` // connecting to NATS
	LoadS    float64 `json:"load_s"`    // loading the model: context, weights, warm-up, capture of its graphs
	FirstS   float64 `json:"first_s"`   // first pull, batch and reply
}

func newStartCommand() *cobra.Command {
	cfg := &startConfig{}
	return experiment(&cobra.Command{
		Use:     "start",
		Short:   "Measure the time from a change of plan to the first answer of a new gpu-let",
		Example: `  evaluate start --device cuda:0 --start-count 7`,
	}, cfg, &cfg.Common, func(ctx context.Context) error {
		return once(ctx, &cfg.Common, "start.json", func(ctx context.Context, r *startResult) error { return starts(ctx, cfg, r) })
	})
}

func starts(ctx context.Context, cfg *startConfig, r *startResult) error {
	r.About = cfg.Common.about(ctx)
	s, models, err := startSiteWith(ctx, &cfg.Common, names(cfg.On))
	if err != nil {
		return err
	}
	defer s.stop()
	p, err := s.newProbe()
	if err != nil {
		return err
	}
	defer p.close()
	empty := plan.Plan{Gpulets: []plan.Gpulet{}}
	var all []float64
	for i := range cfg.Count {
		if cfg.Common.left() < 15*time.Second && i > 0 {
			say("the budget ends after %d starts", i)
			break
		}
		if _, _, err := s.serve(ctx, empty); err != nil {
			return err
		}
		if err := lifecycle.Sleep(ctx, cfg.Pause); err != nil {
			return err
		}
		t, err := p.start(ctx, models[i%len(models)], cfg.Share)
		if err != nil {
			return err
		}
		say("%s: first answer after %.2f s (noticed %.2f, process %.2f, engine %.2f, connect %.2f, load %.2f, first %.2f)",
			t.Model, t.AnswerS, t.NoticedS, t.ProcessS, t.EngineS, t.ConnectS, t.LoadS, t.FirstS)
		r.Starts = append(r.Starts, t)
		all = append(all, t.AnswerS)
	}
	r.MedianS = quantile(all, 0.5)
	return nil
}

// start publishes a plan with one gpu-let more and waits for its first answer.
func (p *probe) start(ctx context.Context, name string, share int) (startTime, error) {
	s, t := p.site, startTime{Model: name, Share: share}
	m, err := s.model(ctx, name)
	if err != nil {
		return t, err
	}
	body, err := bodyOf(m, 0)
	if err != nil {
		return t, err
	}
	p.forget()
	before := s.worker.count()
	serves := plan.Assignment{Model: name, Batch: m.MaxBatch, RateRPS: 1, ExecMs: 1, DutyMs: 1}
	set, _ := profile.LoadDir(s.profiles)
	if prof, ok := set.Get(s.device.GPUType, name); ok {
		serves.Layout = prof.Layout
	}
	one := plan.Plan{GPUsUsed: 1, Gpulets: []plan.Gpulet{{Share: share, Models: []plan.Assignment{serves}}}}
	begin, err := s.publish(ctx, one)
	if err != nil {
		return t, err
	}
	id := s.current.Gpulets[0].ID
	answer, err := p.firstAnswer(ctx, name, body, m.Timeout, id)
	if err != nil {
		return t, err
	}
	t.AnswerS = answer.at.Sub(begin).Seconds()
	events, _ := s.worker.since(before)
	return t, t.stages(events, id, begin, answer.at)
}

// firstAnswer sends a request every few milliseconds until gpu-let id has answered one. So few that
// those that wait for it hardly delay the answer.
func (p *probe) firstAnswer(ctx context.Context, name string, body []byte, timeout time.Duration, id string) (reply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 60*time.Second, fmt.Errorf("waited 60s for an answer of %s", id))
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		if _, err := p.send(ctx, name, body, timeout); err != nil && !errors.Is(err, bus.ErrOverloaded) {
			return reply{}, err
		}
		select {
		case r := <-p.replies:
			if r.Status == wire.StatusOK && r.Timing.Gpulet == id {
				return r, nil
			}
		case <-again.C:
		case <-ctx.Done():
			return reply{}, context.Cause(ctx)
		}
	}
}

// stages takes the time apart by what agent and gpu-let have logged.
func (t *startTime) stages(events []event, id string, begin, answered time.Time) error {
	var started, serving, loaded event
	for _, e := range events {
		switch {
		case e.str("gpulet") != id:
		case e.msg() == "gpu-let: start":
			started = e
		case e.msg() == "serving":
			serving = e
		case e.msg() == "model loaded":
			loaded = e
		}
	}
	if started.at.IsZero() || serving.at.IsZero() || loaded.at.IsZero() {
		return errors.New("the log lacks the start, the serving or the loading of " + id)
	}
	t.NoticedS = started.at.Sub(begin).Seconds()
	t.EngineS = serving.duration("engine_took").Seconds()
	t.ConnectS = serving.duration("connect_took").Seconds()
	t.ProcessS = serving.at.Sub(started.at).Seconds() - t.EngineS - t.ConnectS
	t.LoadS = loaded.at.Sub(serving.at).Seconds()
	t.FirstS = answered.Sub(loaded.at).Seconds()
	return nil
}
