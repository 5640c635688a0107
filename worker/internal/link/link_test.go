package link_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/link"
)

func TestCommandsComeBackAsSent(t *testing.T) {
	sent := []link.Command{
		{Op: link.Assign, Revision: 17, Models: []link.Assignment{{
			Assignment: plan.Assignment{Model: "lenet", Batch: 8, RateRPS: 300, DutyMs: 20, ExecMs: 4.5, Rank: 2},
			Config: model.Model{
				Config: model.Config{
					Name: "lenet", SLO: 5 * time.Millisecond, Timeout: 10 * time.Millisecond, MaxBatch: 32,
					Inputs: []tensor.Spec{{Name: "input", DType: tensor.FP32, Shape: []int64{1, 28, 28}}},
				},
				Version: 3, Hash: "abc",
			},
			Archive: "models/lenet/3/model.pt",
		}}},
		{Op: link.Drain},
	}
	var pipe bytes.Buffer
	w := link.NewWriter(&pipe)
	for _, c := range sent {
		if err := w.Write(c); err != nil {
			t.Fatal(err)
		}
	}
	var got []link.Command
	r := link.NewCommandReader(&pipe)
	for {
		c, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, c)
	}
	if diff := cmp.Diff(sent, got); diff != "" {
		t.Errorf("-sent +got:\n%s", diff)
	}
}

func TestReadsOnAfterABadLine(t *testing.T) {
	in := "{\"op\":\"assign\",\"revision\":1}\n\nterminate called after throwing\n{\"op\":\"drain\"}\n"
	r := link.NewCommandReader(strings.NewReader(in))
	if c, err := r.Read(); err != nil || c.Revision != 1 {
		t.Fatalf("got %v, %v", c, err)
	}
	_, err := r.Read()
	want := `line 3: found "terminate called after throwing": expected one JSON object`
	if !link.IsLineError(err) || !strings.HasPrefix(err.Error(), want) {
		t.Fatalf("got error %v: expected %s", err, want)
	}
	if c, err := r.Read(); err != nil || c.Op != link.Drain {
		t.Fatalf("got %v, %v", c, err)
	}
	if _, err := r.Read(); !errors.Is(err, io.EOF) {
		t.Fatalf("got %v: expected the end", err)
	}
}

func TestALineTooLongEndsReading(t *testing.T) {
	r := link.NewReportReader(strings.NewReader(strings.Repeat("x", link.MaxLine+1)))
	if _, err := r.Read(); err == nil || link.IsLineError(err) || errors.Is(err, io.EOF) {
		t.Fatalf("got %v: expected an error that ends reading", err)
	}
}

func TestReadsWhatToBecomeAndNothingBehindIt(t *testing.T) {
	in := strings.NewReader(`{"args":["gpulet","--share","50"],"env":["A=b=c"]}` + "\n" + `{"op":"drain"}` + "\n")
	b, err := link.ReadBecome(in)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(link.Become{Args: []string{"gpulet", "--share", "50"}, Env: []string{"A=b=c"}}, b); diff != "" {
		t.Error(diff)
	}
	if c, err := link.NewCommandReader(in).Read(); err != nil || c.Op != link.Drain {
		t.Errorf("then %v, %v: expected the command behind it", c, err)
	}
}

func TestSaysWhatIsNotToBeBecome(t *testing.T) {
	for in, want := range map[string]string{
		"":         "EOF",
		`{"args":`: "unexpected EOF",
		"gpulet\n": `line 1: found "gpulet": expected one JSON object`,
		strings.Repeat("x", link.MaxLine+1) + "\n": "token too long",
	} {
		if _, err := link.ReadBecome(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: error %v: expected %s", in, err, want)
		}
	}
}
