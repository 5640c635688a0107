package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// probe sends single requests and sees who answers them.
type probe struct {
	site    *site
	inbox   *bus.Inbox
	replies chan reply
	sent    int
}

// reply is an answer and when it came.
type reply struct {
	wire.Reply
	token string
	at    time.Time
}

func (s *site) newProbe() (*probe, error) {
	p := &probe{site: s, replies: make(chan reply, 4096)}
	var err error
	p.inbox, err = s.client.NewInbox(func(r bus.Reply) {
		got, err := wire.DecodeReply(r.Get, r.Body)
		if err != nil {
			return
		}
		select {
		case p.replies <- reply{got, r.Token, time.Now()}:
		default: // nobody looks
		}
	})
	return p, err
}

func (p *probe) close() { p.inbox.Close() }

// forget drops answers that nobody has looked at.
func (p *probe) forget() {
	for {
		select {
		case <-p.replies:
		default:
			return
		}
	}
}

// send sends one request and returns its token.
func (p *probe) send(ctx context.Context, model string, body []byte, timeout time.Duration) (string, error) {
	p.sent++
	token := fmt.Sprintf("probe-%d", p.sent)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return token, p.site.client.Publish(ctx, &bus.Message{Model: model, RequestID: token, ReplyTo: p.inbox.Address(token), Timeout: timeout, Body: body})
}

// varying stands in for dimensions that a model leaves open.
const varying = 16

// bodyOf is a request of one sample whose every element has the same value; integers take it as it is.
func bodyOf(m model.Model, value int64) ([]byte, error) {
	var req wire.Request
	for _, spec := range m.Inputs {
		shape := []int64{1}
		for _, d := range spec.Shape {
			if d < 0 {
				d = varying
			}
			shape = append(shape, d)
		}
		size, err := tensor.Bytes(spec.DType, shape)
		if err != nil {
			return nil, err
		}
		data := make([]byte, size)
		if spec.DType == tensor.INT64 {
			word := binary.LittleEndian.AppendUint64(nil, uint64(value))
			data = bytes.Repeat(word, int(size)/8)
		}
		req.Inputs = append(req.Inputs, tensor.Tensor{Name: spec.Name, DType: spec.DType, Shape: shape, Data: data})
	}
	return wire.EncodeRequest(wire.TypeMsgpack, req)
}

// model looks a registered model up.
func (s *site) model(ctx context.Context, name string) (model.Model, error) {
	models, err := s.bus.Models(ctx)
	if err != nil {
		return model.Model{}, err
	}
	i := slices.IndexFunc(models, func(m model.Model) bool { return m.Name == name })
	if i < 0 {
		return model.Model{}, fmt.Errorf("model %s is not registered", name)
	}
	return models[i], nil
}

// publish publishes a plan at once, as planner run would, and returns when.
func (s *site) publish(ctx context.Context, p plan.Plan) (time.Time, error) {
	current, rev, err := s.bus.GetPlan(ctx)
	if err != nil {
		return time.Time{}, err
	}
	p = s.place(p)
	p.Revision, p.Term, p.Pinned, p.Created, p.Reason = current.Revision+1, current.Term, true, time.Now().UTC(), "evaluate"
	at := time.Now()
	if _, err := s.bus.PutPlan(ctx, p, rev); err != nil {
		return time.Time{}, err
	}
	s.current = p
	return at, nil
}
