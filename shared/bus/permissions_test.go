package bus_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/gpulet/gpulet/shared/bus"
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
				"$KV.GPULET_PLAN.current", "$KV.GPULET_MODELS.m", "_INBOX_planner.x", "$JS.API.STREAM.MSG.GET.DLQ", "$JS.API.STREAM.PURGE.DLQ", "cancel.m.r",
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
