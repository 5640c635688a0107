package bus_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// What each role may not do, tried on a real server.
func TestRolesAreKeptApart(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	for _, c := range []struct {
		role      bus.Role
		publish   []string
		subscribe []string
	}{
		{
			bus.RoleClient,
			[]string{
				"$JS.API.CONSUMER.MSG.NEXT.INFER_m.W", "$JS.ACK.x", "$JS.API.STREAM.DELETE.INFER_m", "$JS.API.STREAM.MSG.GET.INFER_m",
				"$KV.GPULET_PLAN.current", "$KV.GPULET_STATE.host.a", "$KV.GPULET_MODELS.m", "_INBOX_client.x", "result.m.r", "dlq.m",
				"$JS.API.CONSUMER.CREATE.KV_GPULET_MODELS.x", "$JS.API.STREAM.INFO.INFER_m", "$KV.GPULET_LEASE.planner",
				"$JS.API.DIRECT.GET.RESULTS", "$JS.API.DIRECT.GET.KV_GPULET_PLAN.$KV.GPULET_PLAN.current",
			},
			[]string{">", "infer.>", "_INBOX.>", "_INBOX_frontend.>", "_INBOX_worker.>", "_INBOX_*.>", "$KV.>", "result.>", "$JS.EVENT.>", "cancel.>", "cancel.m.*"},
		},
		{
			bus.RoleFrontend,
			[]string{
				"$JS.API.CONSUMER.MSG.NEXT.INFER_m.W", "$JS.ACK.x", "$JS.API.STREAM.DELETE.INFER_m", "$KV.GPULET_PLAN.current",
				"$KV.GPULET_MODELS.m", "_INBOX_client.x", "dlq.m", "$JS.API.STREAM.MSG.GET.INFER_m", "$JS.API.STREAM.PURGE.INFER_m",
				"$JS.API.STREAM.DELETE.DLQ", "$KV.GPULET_SUSPECTS.m.1",
			},
			[]string{">", "infer.>", "_INBOX_client.>", "_INBOX_worker.>", "dlq.>"},
		},
		{
			bus.RoleWorker,
			[]string{
				"infer.m", "$JS.API.STREAM.CREATE.INFER_x", "$JS.API.STREAM.DELETE.INFER_m", "$JS.API.CONSUMER.DELETE.INFER_m.W",
				"$KV.GPULET_PLAN.current", "$KV.GPULET_MODELS.m", "_INBOX_planner.x", "$KV.GPULET_LEASE.planner", "$KV.GPULET_STATE.planner",
				"$JS.API.CONSUMER.CREATE.KV_GPULET_PLAN.x",
				"$JS.API.STREAM.MSG.GET.DLQ", "$JS.API.STREAM.PURGE.DLQ", "cancel.m.r",
				"$JS.API.DIRECT.GET.KV_GPULET_STATE.$KV.GPULET_STATE.planner",
			},
			[]string{">", "infer.>", "_INBOX_client.>", "_INBOX_frontend.>", "dlq.>"},
		},
		{bus.RolePlanner, []string{"infer.m", "cancel.m.r"}, []string{">", "infer.>", "_INBOX_client.>", "_INBOX_worker.>"}},
	} {
		t.Run(string(c.role), func(t *testing.T) {
			key, err := nats.NkeyOptionFromSeed(bus.KeyFile(s.srv.StateDir(), c.role))
			if err != nil {
				t.Fatal(err)
			}
			violations := make(chan string, 64)
			nc, err := nats.Connect(s.srv.URL(), key, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
				violations <- err.Error()
			}))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			denied := func(kind, subject string) {
				t.Helper()
				if err := nc.Flush(); err != nil {
					t.Fatal(err)
				}
				if v := receive(t, kind+" "+subject, violations); !strings.Contains(v, subject) || !strings.Contains(strings.ToLower(v), kind) {
					t.Errorf("%s to %s: the server said %q", kind, subject, v)
				}
			}
			for _, subject := range c.publish {
				if err := nc.Publish(subject, []byte("x")); err != nil {
					t.Fatal(err)
				}
				denied("publish", subject)
			}
			for _, subject := range c.subscribe {
				if _, err := nc.SubscribeSync(subject); err != nil {
					t.Fatal(err)
				}
				denied("subscription", subject)
			}
		})
	}
}

// The server answers at whatever subject a request names. A client that names one of the streams' must
// not reach it: not with "not found", whose empty body is all that it takes to delete a stream, nor
// with an acknowledgement in place of the plan.
func TestAnswersToClientsReachNothingButClients(t *testing.T) {
	s := newSystem(t)
	for _, m := range []string{"mine", "victim"} {
		s.queue(t, queueOf(m))
	}
	publish(t, s.connect(t, bus.RoleClient), "victim", 5)
	if err := s.planner.PutModel(t.Context(), model.Model{Config: model.Config{Name: "victim"}}); err != nil {
		t.Fatal(err)
	}
	if err := s.planner.EnsureLease(t.Context()); err != nil {
		t.Fatal(err)
	}
	lease, err := s.planner.PutLease(t.Context(), plan.Lease{Holder: "a", Term: 1}, 0)
	if err != nil {
		t.Fatal(err)
	}
	rev := putPlan(t, s.planner, 1, 0)

	nc := s.raw(t, bus.RoleClient)
	asks := []string{
		"infer.mine", "$JS.API.DIRECT.GET.RESULTS.result.mine.none", "$JS.API.DIRECT.GET.KV_GPULET_MODELS.none",
		"$JS.API.DIRECT.GET.KV_GPULET_MODELS.$KV.GPULET_MODELS.victim",
	}
	targets := []string{
		"$KV.GPULET_PLAN.current", "$KV.GPULET_LEASE.planner", "$KV.GPULET_STATE.host.x", "$KV.GPULET_MODELS.victim", "dlq.victim", "result.victim.1",
		"$JS.API.STREAM.DELETE.INFER_victim", "$JS.API.STREAM.PURGE.INFER_victim", "$JS.API.CONSUMER.DELETE.INFER_victim.W",
		"$JS.API.STREAM.DELETE.KV_GPULET_PLAN", "_INBOX_frontend.x", "_INBOX_planner.x",
	}
	overheard := make(chan string, 256)
	for _, role := range []bus.Role{bus.RoleFrontend, bus.RolePlanner} {
		if _, err := s.raw(t, role).Subscribe(bus.InboxPrefix(role)+".x", func(m *nats.Msg) { overheard <- m.Subject }); err != nil {
			t.Fatal(err)
		}
	}
	for _, ask := range asks {
		for _, to := range targets {
			if err := nc.PublishMsg(&nats.Msg{Subject: ask, Reply: to, Data: nil}); err != nil {
				t.Fatal(err)
			}
		}
		// The server takes a connection's messages in order, and answers this one as well.
		if _, err := nc.Request(ask, nil, patience); err != nil {
			t.Fatalf("%s: %v", ask, err)
		}
	}
	if lag, err := s.planner.Lag(t.Context(), "victim"); err != nil || lag.Pending != 5 {
		t.Errorf("the other model's queue: %+v, %v", lag, err)
	}
	if p, now, err := s.planner.GetPlan(t.Context()); err != nil || now != rev || p.Revision != 1 {
		t.Errorf("the plan: %+v, revision %d after %d, %v", p, now, rev, err)
	}
	if l, now, _, err := s.planner.Lease(t.Context()); err != nil || now != lease || l.Holder != "a" {
		t.Errorf("the lease: %+v, revision %d after %d, %v", l, now, lease, err)
	}
	if ms, err := s.planner.Models(t.Context()); err != nil || len(ms) != 1 || ms[0].Name != "victim" {
		t.Errorf("registered models: %+v, %v", ms, err)
	}
	if hosts, err := s.planner.Hosts(t.Context()); err != nil || len(hosts) != 0 {
		t.Errorf("hosts: %+v, %v", hosts, err)
	}
	js, err := jetstream.New(s.raw(t, bus.RolePlanner))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{bus.StreamDLQ, bus.StreamResults} {
		if stream, err := js.Stream(t.Context(), name); err != nil || stream.CachedInfo().State.Msgs != 0 {
			t.Errorf("%s: %v, %+v: expected nothing in it", name, err, stream)
		}
	}
	select {
	case subject := <-overheard:
		t.Errorf("an answer went to %s", subject)
	default:
	}
}

// Two clients with keys of their own and inboxes of their own, as deploy/nats.conf shows for tenants,
// are the operator's to make; one key may not listen to another role's inboxes, nor to requests.
func TestClientHearsNeitherRequestsNorOtherRoles(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	nc := s.raw(t, bus.RoleClient)
	heard := make(chan string, 64)
	for _, subject := range []string{"infer.>", "_INBOX_frontend.>", "_INBOX_worker.>", "_INBOX_planner.>", "$JS.>", "$KV.>", "gpulet.changed.GPULET_PLAN.>", "result.>", "dlq.>"} {
		if _, err := nc.Subscribe(subject, func(m *nats.Msg) { heard <- m.Subject }); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	publish(t, s.connect(t, bus.RoleClient), "m", 3)
	putPlan(t, s.planner, 1, 0)
	if err := s.connect(t, bus.RoleWorker).PutGpulet(t.Context(), plan.GpuletReport{ID: "g"}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil { // what was sent to this connection by now has come
		t.Fatal(err)
	}
	select {
	case subject := <-heard:
		t.Errorf("a client heard %s", subject)
	default:
	}
}

func TestNobodyIsAnonymous(t *testing.T) {
	s := newSystem(t)
	if nc, err := nats.Connect(s.srv.URL()); !errors.Is(err, nats.ErrAuthorization) {
		if nc != nil {
			nc.Close()
		}
		t.Errorf("error %v, expected %v", err, nats.ErrAuthorization)
	}
}

// A role's own work is allowed; that all other tests here pass shows the rest.
func TestWorkerPublishesWhatItMeasured(t *testing.T) {
	s := newSystem(t)
	if err := s.connect(t, bus.RoleWorker).PutGpulet(t.Context(), plan.GpuletReport{ID: "g"}); err != nil {
		t.Error(err)
	}
}

func TestNoRoleMayDoEverything(t *testing.T) {
	for _, role := range bus.Roles() {
		p := bus.PermissionsOf(role)
		if len(p.Publish) == 0 || len(p.Subscribe) == 0 {
			t.Errorf("%s has no permissions", role)
		}
		if slices.Contains(p.Publish, ">") || slices.Contains(p.Subscribe, ">") {
			t.Errorf("%s may do everything", role)
		}
	}
	if p := bus.PermissionsOf("stranger"); len(p.Publish)+len(p.Subscribe) != 0 {
		t.Errorf("an unknown role may do %+v", p)
	}
}
