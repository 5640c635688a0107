package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/gpulet/gpulet/e2e/harness"
)

// TestAPoisonousRequestTakesNobodyWithIt sends hundreds of good requests around one that crashes the
// process that runs it: every good one is answered ok, the poisonous one is answered poisoned and is a
// dead letter. A replay kills again; once the model is mended, it does not.
func TestAPoisonousRequestTakesNobodyWithIt(t *testing.T) {
	r := newRepository(t, "double")
	r.write(t, "double/1/model.pt", "gpulet-ref 1\ninput x FP32\ncrash x 1e6\naffine y FP32 0 2 x\n")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double")

	var all sync.WaitGroup
	infer := func(value string, want func(code int, body string) error) {
		all.Go(func() {
			body := `{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, ` + value + `]}]}`
			code, answer, err := harness.Post(s.HTTP+"/v2/models/double/infer", body)
			if err == nil {
				err = want(code, answer)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	good := func(i int) {
		infer(strconv.Itoa(i), func(code int, body string) error {
			if code != http.StatusOK || !strings.Contains(body, fmt.Sprintf("[2,4,6,%d]", 2*i)) {
				return fmt.Errorf("good request %d: HTTP status %d: %s", i, code, body)
			}
			return nil
		})
	}
	for i := range 500 {
		if i == 200 {
			infer("2e6", func(code int, body string) error {
				if code == http.StatusOK || !strings.Contains(body, "poisoned") {
					return fmt.Errorf("the poisonous request: HTTP status %d: %s", code, body)
				}
				return nil
			})
		}
		good(i)
	}
	all.Wait()

	frontend := func(args ...string) (int, string) {
		t.Helper()
		return harness.Run(t, "frontend", nil, append([]string{"dlq"}, append(args, "--nats-url", s.NATS, "--state-dir", s.StateDir)...)...)
	}
	code, out := frontend("list", "--json")
	letters := harness.Decode[[]struct {
		Letter    uint64
		LastWords string `json:"last_words"`
	}](t, out)
	if code != 0 || len(letters) != 1 || !strings.Contains(letters[0].LastWords, "assertion failed: the model says crash") {
		t.Fatalf("dlq list: exit %d: %s\nexpected one letter, with the engine's last words", code, out)
	}
	number := fmt.Sprint(letters[0].Letter)
	if code, out := frontend("replay", number); code != 1 || !strings.Contains(out, "poisoned") {
		t.Errorf("replay of what kills: exit %d: %s", code, out)
	}
	if code, out := frontend("list"); code != 0 || strings.Count(out, "double") != 1 {
		t.Errorf("after the replay: exit %d: %s\nexpected the letter of the second attempt alone", code, out)
	}

	r.write(t, "double/2/model.pt", "gpulet-ref 1\ninput x FP32\naffine y FP32 0 2 x\n")
	harness.Eventually(t, "version 2 answers", func() error {
		code, body, err := harness.Post(s.HTTP+"/v2/models/double/infer", goodJSON)
		if err == nil && (code != http.StatusOK || !strings.Contains(body, `"model_version":"2"`)) {
			err = fmt.Errorf("HTTP status %d: %s", code, body)
		}
		return err
	})
	if code, out := frontend("replay", "--model", "double"); code != 0 || strings.Count(out, " ok") != 1 {
		t.Errorf("replay of what is mended: exit %d: %s", code, out)
	}
	if code, out := frontend("list", "--json"); code != 0 || strings.TrimSpace(out) != "[]" {
		t.Errorf("afterwards: exit %d: %s", code, out)
	}
}
