package gpulet_test

import (
	"bytes"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// grey is a picture of 4 x 4 whose pixels are from, from+1, ...
func grey(from byte) *image.Gray {
	img := image.NewGray(image.Rect(0, 0, 4, 4))
	for i := range img.Pix {
		img.Pix[i] = from + byte(i)
	}
	return img
}

func pngOf(t testing.TB, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// jpegOf is a JPEG that the rig's engine decodes to a picture of the one colour.
func jpegOf(t testing.TB, colour byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := jpeg.Encode(&b, grey(0), nil); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), colour)
}

// sendImage sends a body with its content type.
func (r *rig) sendImage(mdl, id, contentType string, body []byte, timeout time.Duration) {
	r.t.Helper()
	r.publish(&bus.Message{
		Model: mdl, RequestID: id, ReplyTo: r.inbox.Address(id), ContentType: contentType, Timeout: timeout, Body: body,
	})
}

func TestImagesAreSamples(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, images: true})
	r.waitReady(1)
	r.sendImage("a", "png", wire.TypePNG, pngOf(t, grey(10)), 0)
	r.sendImage("a", "jpeg", "image/JPEG; x=y", jpegOf(t, 77), 0)
	raw := wire.Request{Inputs: []tensor.Tensor{{Name: "x", DType: tensor.UINT8, Shape: []int64{1, 1, 4, 4}, Data: grey(10).Pix}}}
	body, err := wire.EncodeRequest(wire.TypeMsgpack, raw)
	if err != nil {
		t.Fatal(err)
	}
	r.publish(&bus.Message{Model: "a", RequestID: "tensor", ReplyTo: r.inbox.Address("tensor"), Body: body})
	got := r.wait("png", "jpeg", "tensor")
	for i, rep := range got {
		if rep.Status != wire.StatusOK || len(rep.Outputs) != 2 || !cmp.Equal(rep.Outputs[0].Shape, []int64{1, 1, 4, 4}) {
			t.Fatalf("%d: %+v", i, rep)
		}
	}
	if d := cmp.Diff(got[2].Outputs[0], got[0].Outputs[0]); d != "" {
		t.Errorf("a PNG is answered unlike its pixels:\n%s", d)
	}
	for i := range 16 {
		if v := float(got[1].Outputs[0], i); v != 2*77 {
			t.Errorf("JPEG: element %d is %v: expected %v", i, v, 2*77)
		}
	}
}

// An image and raw bytes have no place for a choice of outputs: a header makes it.
func TestOutputsAreChosenByHeader(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, images: true})
	r.waitReady(1)
	both := wire.Request{Inputs: []tensor.Tensor{{Name: "x", DType: tensor.UINT8, Shape: []int64{1, 1, 4, 4}, Data: grey(10).Pix}}, Outputs: []string{"y"}}
	msgpack, err := wire.EncodeRequest(wire.TypeMsgpack, both)
	if err != nil {
		t.Fatal(err)
	}
	const last = "n"
	for id, c := range map[string]struct {
		kind string
		body []byte
		want string // names, or what is wrong
		bad  bool
	}{
		"png":     {wire.TypePNG, pngOf(t, grey(10)), last, false},
		"raw":     {wire.TypeRaw, make([]byte, 4*16), last, false},
		"twice":   {wire.TypeMsgpack, msgpack, `header Gpulet-Outputs: found "` + last + `" beside a body that names outputs`, true},
		"unknown": {wire.TypePNG, pngOf(t, grey(10)), `output "nope": the model has no such output`, true},
	} {
		header := last
		if id == "unknown" {
			header = last + ", nope"
		}
		r.publish(&bus.Message{
			Model: "a", RequestID: id, ReplyTo: r.inbox.Address(id), ContentType: c.kind, Body: c.body,
			Header: map[string]string{wire.HeaderOutputs: header},
		})
		rep := r.wait(id)[0]
		switch {
		case c.bad && (rep.Status != wire.BadRequest || !strings.Contains(rep.Detail, c.want)):
			t.Errorf("%s: %s %q: expected bad_request with %q", id, rep.Status, rep.Detail, c.want)
		case !c.bad && (len(rep.Outputs) != 1 || rep.Outputs[0].Name != c.want):
			t.Errorf("%s: %s %q: expected only output %q", id, rep.Status, rep.Detail, c.want)
		}
	}
}

func TestBadImagesAreRefused(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, images: true})
	r.waitReady(1)
	whole := pngOf(t, grey(0))
	for id, c := range map[string]struct {
		kind string
		body []byte
		want string
	}{
		"truncated": {wire.TypePNG, whole[:len(whole)-15], "image/png body: unexpected EOF"},
		"mistyped":  {wire.TypeJPEG, whole, "image/jpeg body: found a PNG: expected image/jpeg"},
		"empty":     {wire.TypePNG, nil, "found 0 bytes"},
		"webp":      {"image/webp", whole, `content type "image/webp": expected one of`},
	} {
		r.sendImage("a", id, c.kind, c.body, 0)
		if rep := r.wait(id)[0]; rep.Status != wire.BadRequest || !strings.Contains(rep.Detail, c.want) {
			t.Errorf("%s: %s %q: expected bad_request with %q", id, rep.Status, rep.Detail, c.want)
		}
	}
	if n := r.report().Models[0].Rejected; n != 4 {
		t.Errorf("%d requests are counted as rejected: expected 4", n)
	}
}

func TestImagesAreRefusedWhereNoneIsTaken(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}})
	r.waitReady(1)
	r.sendImage("a", "i", wire.TypePNG, pngOf(t, grey(0)), 0)
	if rep := r.wait("i")[0]; rep.Status != wire.BadRequest || !strings.Contains(rep.Detail, "takes no images: input \"x\" has the shape [-1]") {
		t.Errorf("%s: %q", rep.Status, rep.Detail)
	}
}

func TestImagesBeingDecodedCountAsHeld(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, images: true, batch: 4, ackWait: time.Minute})
	r.waitReady(1)
	waiting, open := r.engine.jpegs.shut()
	defer open()
	var ids []string
	for i := range 20 {
		ids = append(ids, fmt.Sprint(i))
		r.sendImage("a", ids[i], wire.TypeJPEG, jpegOf(t, byte(i)), 0)
	}
	r.await(waiting)
	// One batch is on its way; the rest stays where other gpu-lets can take it.
	r.unstored.Wait()
	r.waitLag("a", func(l bus.Lag) bool { return l.AckPending >= 4 })
	r.report() // it has had time to ask for more
	r.waitLag("a", func(l bus.Lag) bool {
		if l.AckPending > 4 {
			t.Fatalf("%d images are held: expected a batch of 4", l.AckPending)
		}
		return true
	})
	open()
	for i, rep := range r.wait(ids...) {
		if rep.Status != wire.StatusOK || float(rep.Outputs[0], 0) != float32(2*i) {
			t.Errorf("%d: %s %s", i, rep.Status, rep.Detail)
		}
	}
}

func TestImageThatIsLateWhenDecodedExpires(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, images: true})
	r.waitReady(1)
	waiting, open := r.engine.jpegs.shut()
	defer open()
	r.sendImage("a", "late", wire.TypeJPEG, jpegOf(t, 1), 50*time.Millisecond)
	r.await(waiting)
	sent := time.Now()
	r.gpulets[0].waitFor("the deadline to pass", func(p plan.GpuletReport) bool { return p.Time.After(sent.Add(60 * time.Millisecond)) })
	open()
	if rep := r.wait("late")[0]; rep.Status != wire.Expired {
		t.Errorf("%s %s: expected expired", rep.Status, rep.Detail)
	}
}

func TestDrainingWaitsForImages(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, images: true})
	r.waitReady(1)
	waiting, open := r.engine.jpegs.shut()
	defer open()
	r.sendImage("a", "i", wire.TypeJPEG, jpegOf(t, 9), 0)
	r.await(waiting)
	r.gpulets[0].cancel()
	r.gpulets[0].waitFor("draining", func(p plan.GpuletReport) bool { return p.State == plan.Draining })
	open()
	if rep := r.wait("i")[0]; rep.Status != wire.StatusOK {
		t.Errorf("%s %s", rep.Status, rep.Detail)
	}
	if err := r.gpulets[0].ended(); err != nil {
		t.Error(err)
	}
	r.waitEmpty("a")
}

func TestModelThatIsTakenAwayFinishesItsImages(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, images: true})
	r.waitReady(1)
	waiting, open := r.engine.jpegs.shut()
	defer open()
	r.sendImage("a", "i", wire.TypeJPEG, jpegOf(t, 9), 0)
	r.await(waiting)
	r.gpulets[0].assign(2)
	r.gpulets[0].waitFor("the new assignment", func(p plan.GpuletReport) bool { return p.Revision == 2 })
	open()
	if rep := r.wait("i")[0]; rep.Status != wire.StatusOK {
		t.Errorf("%s %s", rep.Status, rep.Detail)
	}
	r.gpulets[0].waitFor("the model to go", func(p plan.GpuletReport) bool { return len(p.Models) == 0 })
}

func TestAbortedDrainLeavesImagesToOthers(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, images: true, grace: 50 * time.Millisecond})
	r.waitReady(1)
	waiting, open := r.engine.jpegs.shut()
	defer open()
	r.sendImage("a", "i", wire.TypeJPEG, jpegOf(t, 9), 0)
	r.await(waiting)
	r.gpulets[0].cancel()
	if err := r.gpulets[0].ended(); err == nil || !strings.Contains(err.Error(), "1 requests, to be delivered again") {
		t.Errorf("error %v", err)
	}
	open()
	r.start("a")
	if rep := r.wait("i")[0]; rep.Status != wire.StatusOK || rep.Timing.Gpulet != "g1" {
		t.Errorf("%s by %s: %s", rep.Status, rep.Timing.Gpulet, rep.Detail)
	}
}
