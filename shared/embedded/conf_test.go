package embedded_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/gpulet/gpulet/shared/bus"
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
	opts.StoreDir, opts.Port, opts.HTTPPort, opts.NoSigs = t.TempDir(), server.RANDOM_PORT, server.RANDOM_PORT, true
	opts.Host, opts.HTTPHost = "127.0.0.1", "127.0.0.1"
	srv, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer srv.WaitForShutdown()
	defer srv.Shutdown()
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
	roles := map[string]bus.Role{}
	conf := regexp.MustCompile(`(?m)^#`).ReplaceAllString(commented, "")
	for _, role := range bus.Roles() {
		pair, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		public, err := pair.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		roles[public] = role
		conf = strings.Replace(conf, placeholder(role), public, 1)
	}
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(head+conf), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(opts.Nkeys) != len(roles) || len(opts.Users) != 0 || opts.NoAuthUser != "" {
		t.Fatalf("%d NKeys, %d users, anonymous as %q, expected only %d NKeys", len(opts.Nkeys), len(opts.Users), opts.NoAuthUser, len(roles))
	}
	for _, u := range opts.Nkeys {
		got := bus.Permissions{Publish: u.Permissions.Publish.Allow, Subscribe: u.Permissions.Subscribe.Allow}
		if diff := cmp.Diff(bus.PermissionsOf(roles[u.Nkey]), got); diff != "" {
			t.Errorf("%s (run with %s=1 to rewrite): %s", roles[u.Nkey], rewriteEnv, diff)
		}
	}
}

func placeholder(role bus.Role) string { return "<public key of " + string(role) + ".nk>" }

// authorization is the block as it stands in the file.
func authorization() string {
	var b strings.Builder
	line := func(s string) { b.WriteString("#" + s + "\n") }
	line("authorization {")
	line("  users: [")
	for _, role := range bus.Roles() {
		may := bus.PermissionsOf(role)
		line(`    { nkey: "` + placeholder(role) + `", permissions: {`)
		line("        publish: [")
		for _, s := range may.Publish {
			line(`          "` + s + `"`)
		}
		line("        ]")
		line("        subscribe: [")
		for _, s := range may.Subscribe {
			line(`          "` + s + `"`)
		}
		line("        ]")
		line("    } }")
	}
	line("  ]")
	line("}")
	return b.String()
}
