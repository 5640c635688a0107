package embedded_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/model"
)

const (
	confFile   = "../../deploy/nats.conf"
	uncomment  = `# Delete the "#" in front of each line from here to the end.`
	rewriteEnv = "GPULET_REWRITE"
)

// The server's own parser takes the file as it is shipped.
func TestShippedConfigIsAccepted(t *testing.T) {
	opts, err := server.ProcessConfigFile(confFile)
	if err != nil {
		t.Fatal(err)
	}
	if !opts.JetStream || opts.StoreDir != "/data" || opts.MaxPayload != 8<<20 || opts.Port != 4222 || opts.HTTPPort != 8222 {
		t.Errorf("JetStream %v in %q, max payload %d, ports %d and %d", opts.JetStream, opts.StoreDir, opts.MaxPayload, opts.Port, opts.HTTPPort)
	}
	if len(opts.Nkeys) != 0 {
		t.Errorf("%d NKeys are on by default", len(opts.Nkeys))
	}
	srv := run(t, opts)
	b, err := bus.Connect(t.Context(), bus.Config{URL: srv.ClientURL()}, bus.RolePlanner, "planner", quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.EnsureBase(t.Context()); err != nil {
		t.Error(err)
	}
}

// What the file shows in comments is what the embedded server does. GPULET_REWRITE=1 writes it.
func TestCommentedAuthorizationIsThatOfTheRoles(t *testing.T) {
	data, err := os.ReadFile(confFile)
	if err != nil {
		t.Fatal(err)
	}
	head, commented, found := strings.Cut(string(data), uncomment)
	if !found {
		t.Fatalf("%s lacks the line %q", confFile, uncomment)
	}
	if os.Getenv(rewriteEnv) != "" {
		commented = "\n#\n" + authorization()
		if err := os.WriteFile(confFile, []byte(head+uncomment+commented), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	opts, roles, _ := authorized(t, head+uncomment+commented)
	if len(opts.Nkeys) != len(roles) || len(opts.Users) != 0 || opts.NoAuthUser != "" {
		t.Fatalf("%d NKeys, %d users, anonymous as %q, expected only %d NKeys", len(opts.Nkeys), len(opts.Users), opts.NoAuthUser, len(roles))
	}
	for _, u := range opts.Nkeys {
		got := bus.Permissions{Publish: u.Permissions.Publish.Allow, Subscribe: u.Permissions.Subscribe.Allow}
		if diff := cmp.Diff(bus.PermissionsOf(roles[u.Nkey]), got); diff != "" {
			t.Errorf("%s (run with %s=1 to rewrite): %s", roles[u.Nkey], rewriteEnv, diff)
		}
		if apart := u.Account.Name == "CLIENTS"; apart != (roles[u.Nkey] == bus.RoleClient) {
			t.Errorf("%s is in account %s", roles[u.Nkey], u.Account.Name)
		}
	}
}

// authorized are the options of the file with its last part in force and a key for each role. The seeds
// are under the state folder that is returned.
func authorized(t *testing.T, conf string) (opts *server.Options, roles map[string]bus.Role, stateDir string) {
	t.Helper()
	stateDir, roles = t.TempDir(), map[string]bus.Role{}
	if err := os.Mkdir(filepath.Join(stateDir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	head, commented, _ := strings.Cut(conf, uncomment)
	conf = head + regexp.MustCompile(`(?m)^#`).ReplaceAllString(commented, "")
	for _, role := range bus.Roles() {
		pair, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		public, err := pair.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		seed, err := pair.Seed()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(bus.KeyFile(stateDir, role), seed, 0o600); err != nil {
			t.Fatal(err)
		}
		roles[public] = role
		conf = strings.Replace(conf, placeholder(role), public, 1)
	}
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return opts, roles, stateDir
}

// A server with that file serves clients, and does not let them have its answers sent elsewhere.
func TestCommentedAuthorizationServesAndProtects(t *testing.T) {
	data, err := os.ReadFile(confFile)
	if err != nil {
		t.Fatal(err)
	}
	opts, _, stateDir := authorized(t, string(data))
	srv := run(t, opts)
	connect := func(role bus.Role) *bus.Bus {
		b, err := bus.Connect(t.Context(), bus.Config{URL: srv.ClientURL(), StateDir: stateDir}, role, string(role), quiet)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		return b
	}
	planner, client, worker := connect(bus.RolePlanner), connect(bus.RoleClient), connect(bus.RoleWorker)
	if err := planner.EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	q := bus.Queue{Model: "m", MaxMsgs: 100, MaxBytes: 1 << 20, MaxAge: time.Minute, AckWait: time.Minute, MaxAckPending: 10}
	if err := planner.EnsureQueue(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if err := planner.PutModel(t.Context(), model.Model{Config: model.Config{Name: "m"}}); err != nil {
		t.Fatal(err)
	}
	if ms, err := client.Models(t.Context()); err != nil || len(ms) != 1 {
		t.Errorf("a client sees models %+v, %v", ms, err)
	}
	replies := make(chan bus.Reply, 1)
	inbox, err := client.NewInbox(func(r bus.Reply) { replies <- r })
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Publish(t.Context(), &bus.Message{Model: "m", ReplyTo: inbox.Address("1"), Body: []byte("x")}); err != nil {
		t.Errorf("a client publishes: %v", err)
	}
	if err := worker.Reply(inbox.Address("1"), nil, []byte("y")); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-replies:
		if string(r.Body) != "y" {
			t.Errorf("reply %q", r.Body)
		}
	case <-time.After(20 * time.Second):
		t.Error("no reply came")
	}
	hearsCancellation(t, client, worker, planner, connect(bus.RoleFrontend))
	deleteByReply(t, srv.ClientURL(), stateDir)
	if lag, err := planner.Lag(t.Context(), "m"); err != nil || lag.Pending != 1 {
		t.Errorf("queue %+v, %v: expected the request in it", lag, err)
	}
}

// hearsCancellation has a client cancel a request, of which everybody hears who may have it.
func hearsCancellation(t *testing.T, client *bus.Bus, others ...*bus.Bus) {
	t.Helper()
	heard := make(chan bus.Cancellation, len(others))
	for _, b := range others {
		stop, err := b.WatchCancellations("m", func(c bus.Cancellation) { heard <- c })
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		if err := b.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	want := bus.Cancellation{Model: "m", RequestID: "r", Seq: 7}
	if err := client.Cancel(want); err != nil {
		t.Fatal(err)
	}
	for range others {
		select {
		case got := <-heard:
			if got != want {
				t.Errorf("heard %+v, expected %+v", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("not everybody hears of a cancellation")
		}
	}
}

// deleteByReply has the server send an empty answer to where streams are deleted.
func deleteByReply(t *testing.T, url, stateDir string) {
	t.Helper()
	key, err := nats.NkeyOptionFromSeed(bus.KeyFile(stateDir, bus.RoleClient))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(url, key, nats.CustomInboxPrefix(bus.InboxPrefix(bus.RoleClient)))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	const ask = "$JS.API.DIRECT.GET.RESULTS.result.m.none"
	if err := nc.PublishMsg(&nats.Msg{Subject: ask, Reply: "$JS.API.STREAM.DELETE.INFER_m"}); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Request(ask, nil, 20*time.Second); err != nil { // answered after the first
		t.Fatal(err)
	}
}

func placeholder(role bus.Role) string { return "<public key of " + string(role) + ".nk>" }

// run runs a server on free ports until the test ends.
func run(t *testing.T, opts *server.Options) *server.Server {
	t.Helper()
	opts.StoreDir, opts.Port, opts.HTTPPort, opts.NoSigs = t.TempDir(), server.RANDOM_PORT, server.RANDOM_PORT, true
	opts.Host, opts.HTTPHost = "127.0.0.1", "127.0.0.1"
	srv, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server does not take connections")
	}
	return srv
}

// authorization is the block as it stands in the file.
func authorization() string {
	var b strings.Builder
	line := func(s string) { b.WriteString("#" + s + "\n") }
	shared := embedded.SharedWithClients()
	line("accounts {")
	line("  GPULET {")
	line("    jetstream: enabled")
	line("    users: [")
	for _, role := range bus.Roles() {
		if role != bus.RoleClient {
			user(line, role)
		}
	}
	line("    ]")
	line("    exports: [")
	for _, s := range shared.Services {
		line(`      { service: "` + s + `", accounts: [CLIENTS] }`)
	}
	for _, s := range shared.Streams {
		line(`      { stream: "` + s + `", accounts: [CLIENTS] }`)
	}
	line("    ]")
	line("  }")
	line("  CLIENTS {")
	line("    users: [")
	user(line, bus.RoleClient)
	line("    ]")
	line("    imports: [")
	for _, s := range shared.Services {
		line(`      { service: { account: GPULET, subject: "` + s + `" } }`)
	}
	for _, s := range shared.Streams {
		line(`      { stream: { account: GPULET, subject: "` + s + `" } }`)
	}
	line("    ]")
	line("  }")
	line("}")
	return b.String()
}

func user(line func(string), role bus.Role) {
	may := bus.PermissionsOf(role)
	line(`      { nkey: "` + placeholder(role) + `", permissions: {`)
	line("          publish: [")
	for _, s := range may.Publish {
		line(`            "` + s + `"`)
	}
	line("          ]")
	line("          subscribe: [")
	for _, s := range may.Subscribe {
		line(`            "` + s + `"`)
	}
	line("          ]")
	line("      } }")
}

// Tenants with a key and an inbox prefix each, as the file says to make them, hear their own answers
// alone.
func TestTenantsDoNotHearEachOther(t *testing.T) {
	data, err := os.ReadFile(confFile)
	if err != nil {
		t.Fatal(err)
	}
	opts, roles, stateDir := authorized(t, string(data))
	for _, u := range opts.Nkeys {
		if roles[u.Nkey] == bus.RoleClient { // the client's key is tenant a's
			u.Permissions.Subscribe.Allow = []string{"_INBOX_client.a.>", "gpulet.changed.GPULET_MODELS.>"}
		}
	}
	srv := run(t, opts)
	key, err := nats.NkeyOptionFromSeed(bus.KeyFile(stateDir, bus.RoleClient))
	if err != nil {
		t.Fatal(err)
	}
	denied := make(chan error, 8)
	nc, err := nats.Connect(srv.ClientURL(), key, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied <- err }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	worker, err := bus.Connect(t.Context(), bus.Config{URL: srv.ClientURL(), StateDir: stateDir}, bus.RoleWorker, "worker", quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer worker.Close()
	heard := make(chan string, 8)
	for _, subject := range []string{"_INBOX_client.b.>", "_INBOX_client.>", "_INBOX_client.*.1", "_INBOX_client.a.>"} {
		if _, err := nc.Subscribe(subject, func(m *nats.Msg) { heard <- m.Subject }); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"_INBOX_client.b.1", "_INBOX_client.a.1"} { // in this order
		if err := worker.Reply(to, nil, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if got := <-heard; got != "_INBOX_client.a.1" {
		t.Errorf("tenant a heard %s", got)
	}
	for range 3 {
		if err := <-denied; !strings.Contains(err.Error(), "Subscription") {
			t.Errorf("the server said %v, expected that it refuses a subscription", err)
		}
	}
	if len(heard) > 0 {
		t.Errorf("tenant a heard %s too", <-heard)
	}
}
