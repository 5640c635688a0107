package embedded

import (
	"fmt"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/gpulet/gpulet/shared/bus"
)

// clientsAccount is where clients are; everybody else is in the server's own account, with the
// streams. The server answers a request at any subject that the request names, whatever its sender
// may publish to: in one account, the answer "not found" sent to the subject that deletes a stream
// deletes it. From an account of their own, clients reach the streams by the subjects of their role
// alone, and answers come back to where only they are.
const clientsAccount = "CLIENTS"

// Shared is what passes between the two accounts: requests of clients, with one answer each, and what
// is sent to clients.
type Shared struct{ Services, Streams []string }

// SharedWithClients is what a client's role may do, seen from the other account.
func SharedWithClients() Shared {
	may := bus.PermissionsOf(bus.RoleClient)
	return Shared{Services: may.Publish, Streams: may.Subscribe}
}

// share lets clients reach what they may. The server has not been started yet.
func share(srv *server.Server) error {
	clients, err := srv.LookupAccount(clientsAccount)
	if err != nil {
		return fmt.Errorf("embedded NATS: account %s: %w", clientsAccount, err)
	}
	main := srv.GlobalAccount()
	to := []*server.Account{clients}
	shared := SharedWithClients()
	for _, subject := range shared.Services {
		if err := main.AddServiceExport(subject, to); err != nil {
			return fmt.Errorf("embedded NATS: export %s: %w", subject, err)
		}
		if err := clients.AddServiceImport(main, subject, subject); err != nil {
			return fmt.Errorf("embedded NATS: import %s: %w", subject, err)
		}
	}
	for _, subject := range shared.Streams {
		if err := main.AddStreamExport(subject, to); err != nil {
			return fmt.Errorf("embedded NATS: export %s: %w", subject, err)
		}
		if err := clients.AddStreamImport(main, subject, ""); err != nil {
			return fmt.Errorf("embedded NATS: import %s: %w", subject, err)
		}
	}
	return nil
}
