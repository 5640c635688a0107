package chaos

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/gpulet/gpulet/e2e/harness"
)

// jsz is what of a server's /jsz the suite reads.
type jsz struct {
	Accounts []struct {
		Streams []struct {
			Name    string `json:"name"`
			Cluster struct {
				Leader   string `json:"leader"`
				Replicas []struct {
					Name    string `json:"name"`
					Current bool   `json:"current"`
					Offline bool   `json:"offline"`
				} `json:"replicas"`
			} `json:"cluster"`
		} `json:"stream_detail"`
	} `json:"account_details"`
}

func (n *natsServer) streams() (jsz, error) {
	var v jsz
	_, body, err := harness.Get("http://" + n.http + "/jsz?accounts=true&streams=true")
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal([]byte(body), &v)
}

// leader is the name of the server that leads a stream.
func (s *site) leader(stream string) (string, error) {
	for _, n := range s.nats {
		v, err := n.streams()
		if err != nil {
			return "", err
		}
		for _, a := range v.Accounts {
			for _, st := range a.Streams {
				if st.Name == stream && st.Cluster.Leader != "" {
					return st.Cluster.Leader, nil
				}
			}
		}
	}
	return "", fmt.Errorf("no server says who leads %s", stream)
}

// whole waits until every replica of every stream is current, which its leader alone knows: a cluster
// of three bears the loss of one server at a time.
func (s *site) whole() {
	s.t.Helper()
	harness.Eventually(s.t, "all replicas are current", func() error {
		found := 0
		for i, n := range s.nats {
			v, err := n.streams()
			if err != nil {
				return err
			}
			for _, a := range v.Accounts {
				for _, st := range a.Streams {
					if st.Cluster.Leader != serverName(i) {
						continue
					}
					for _, r := range st.Cluster.Replicas {
						found++
						if !r.Current || r.Offline {
							return fmt.Errorf("%s on %s is not", st.Name, r.Name)
						}
					}
				}
			}
		}
		if found == 0 {
			return fmt.Errorf("no stream has replicas")
		}
		return nil
	})
}

// store is the first server's folder.
func (s *site) store() string { return filepath.Clean(s.layout.store) }
