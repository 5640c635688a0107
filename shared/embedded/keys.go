package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/gpulet/gpulet/shared/bus"
)

// users makes the server's list of who may connect: one NKey per role, kept in dir.
func users(dir string, clients *server.Account, log *slog.Logger) ([]*server.NkeyUser, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded NATS: keys: %w", err)
	}
	var list []*server.NkeyUser
	for _, role := range bus.Roles() {
		public, err := publicKey(filepath.Join(dir, string(role)+".nk"), log)
		if err != nil {
			return nil, err
		}
		may := bus.PermissionsOf(role)
		user := &server.NkeyUser{Nkey: public, Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: may.Publish},
			Subscribe: &server.SubjectPermission{Allow: may.Subscribe},
		}}
		if role == bus.RoleClient {
			user.Account = clients
		}
		list = append(list, user)
	}
	return list, nil
}

// publicKey reads a seed file, made first where there is none, and returns its public key.
func publicKey(file string, log *slog.Logger) (string, error) {
	seed, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		seed, err = makeSeed(file)
	}
	if err != nil {
		return "", fmt.Errorf("embedded NATS: key: %w", err)
	}
	defer clear(seed)
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o077 != 0 {
		log.Warn("key file can be read by others, expected mode 0600", "file", file, "mode", info.Mode().Perm().String())
	}
	pair, err := nkeys.FromSeed(bytes.TrimSpace(seed))
	if err != nil {
		return "", fmt.Errorf("embedded NATS: key file %s: %w: expected a user seed (SU...); delete the file to have one made", file, err)
	}
	defer pair.Wipe()
	public, err := pair.PublicKey()
	if err != nil || !nkeys.IsValidPublicUserKey(public) {
		return "", fmt.Errorf("embedded NATS: key file %s holds no user seed (SU...); delete it to have one made", file)
	}
	return public, nil
}

// makeSeed writes a new seed so that a reader never sees half of it. No line break follows it: not
// every client library takes one.
func makeSeed(file string) ([]byte, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return nil, err
	}
	defer pair.Wipe()
	seed, err := pair.Seed() // wiped with the pair
	if err != nil {
		return nil, err
	}
	seed = bytes.Clone(seed)
	tmp, err := os.CreateTemp(filepath.Dir(file), ".key-*") // made with mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name()) // gone after the rename
	_, werr := tmp.Write(seed)
	if err := errors.Join(werr, tmp.Sync(), tmp.Close(), os.Rename(tmp.Name(), file)); err != nil {
		return nil, err
	}
	return bytes.Clone(seed), nil // the pair wipes its own
}
