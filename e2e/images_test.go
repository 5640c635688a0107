package e2e

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// asker sends requests over both doors of a system and waits for their answers.
type asker struct {
	s       *harness.System
	bus     *bus.Bus
	inbox   *bus.Inbox
	replies chan bus.Reply
	sent    int
}

func newAsker(t *testing.T, s *harness.System) *asker {
	t.Helper()
	a := &asker{s: s, bus: s.Bus(t, bus.RoleClient), replies: make(chan bus.Reply, 16)}
	var err error
	if a.inbox, err = a.bus.NewInbox(func(r bus.Reply) { a.replies <- r }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.inbox.Close)
	return a
}

// overNATS returns the reply to one request.
func (a *asker) overNATS(t *testing.T, model, contentType string, body []byte) wire.Reply {
	t.Helper()
	a.sent++
	id := fmt.Sprint("image-", a.sent)
	m := &bus.Message{Model: model, RequestID: id, ReplyTo: a.inbox.Address(id), ContentType: contentType, Body: body}
	if err := a.bus.Publish(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-a.replies:
		rep, err := wire.DecodeReply(r.Get, r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return rep
	case <-time.After(time.Minute):
		t.Fatalf("waited a minute for the reply to a request of %s", contentType)
		return wire.Reply{}
	}
}

// overHTTP returns the HTTP status and body of the answer to one request.
func (a *asker) overHTTP(t *testing.T, model, contentType string, body []byte) (int, string) {
	t.Helper()
	code, answer, err := harness.Post(a.s.HTTP+"/v2/models/"+model+"/infer", string(body), "Content-Type", contentType)
	if err != nil {
		t.Fatal(err)
	}
	return code, answer
}

// numbers are the elements of the first output of an answer over HTTP.
func numbers(t *testing.T, answer string) []float64 {
	t.Helper()
	return harness.Decode[struct {
		Outputs []struct {
			Data []float64 `json:"data"`
		} `json:"outputs"`
	}](t, answer).Outputs[0].Data
}

// floats are the elements of an FP32 tensor.
func floats(x tensor.Tensor) []float64 {
	var list []float64
	for b := x.Data; len(b) > 0; b = b[4:] {
		list = append(list, float64(math.Float32frombits(uint32(b[0])|uint32(b[1])<<8|uint32(b[2])<<16|uint32(b[3])<<24)))
	}
	return list
}

func sameNumbers(t *testing.T, what string, got, want []float64, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d numbers: expected %d", what, len(got), len(want))
	}
	for i := range want {
		if math.Abs(got[i]-want[i]) > tolerance {
			t.Errorf("%s: element %d is %v: expected %v within %v", what, i, got[i], want[i], tolerance)
			return
		}
	}
}

// planes takes a picture apart into its colours, red first, or into grey alone.
func planes(img image.Image, channels int) []byte {
	size := img.Bounds().Size()
	plane := size.X * size.Y
	pixels := make([]byte, channels*plane)
	for y := range size.Y {
		for x := range size.X {
			at := y*size.X + x
			if channels == 1 {
				pixels[at] = color.GrayModel.Convert(img.At(x, y)).(color.Gray).Y
				continue
			}
			c := color.NRGBAModel.Convert(img.At(x, y)).(color.NRGBA)
			pixels[at], pixels[plane+at], pixels[2*plane+at] = c.R, c.G, c.B
		}
	}
	return pixels
}

// askForPictures sends a picture as a tensor, as a PNG and as a JPEG over both doors: the images are
// answered like the tensors that Go's decoders make of them.
func askForPictures(t *testing.T, a *asker, model, input string, channels int, img image.Image, tolerance float64) {
	t.Helper()
	size := img.Bounds().Size()
	var asPNG, asJPEG bytes.Buffer
	if err := png.Encode(&asPNG, img); err != nil {
		t.Fatal(err)
	}
	if err := jpeg.Encode(&asJPEG, img, &jpeg.Options{Quality: 90}); err != nil {
		t.Fatal(err)
	}
	lossy, err := jpeg.Decode(bytes.NewReader(asJPEG.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind      string
		body      []byte
		decoded   image.Image
		tolerance float64
	}{
		{wire.TypePNG, asPNG.Bytes(), img, 1e-5},
		{wire.TypeJPEG, asJPEG.Bytes(), lossy, tolerance},
	} {
		x := tensor.Tensor{Name: input, DType: tensor.UINT8, Shape: []int64{1, int64(channels), int64(size.Y), int64(size.X)}, Data: planes(c.decoded, channels)}
		body, err := wire.EncodeRequest(wire.TypeMsgpack, wire.Request{Inputs: []tensor.Tensor{x}})
		if err != nil {
			t.Fatal(err)
		}
		want := a.overNATS(t, model, wire.TypeMsgpack, body)
		got := a.overNATS(t, model, c.kind, c.body)
		if want.Status != wire.StatusOK || got.Status != wire.StatusOK {
			t.Fatalf("%s: the image is answered %s %s, the tensor %s %s", c.kind, got.Status, got.Detail, want.Status, want.Detail)
		}
		sameNumbers(t, c.kind+" over NATS", floats(got.Outputs[0]), floats(want.Outputs[0]), c.tolerance)
		code, answer := a.overHTTP(t, model, c.kind, c.body)
		if code != http.StatusOK {
			t.Fatalf("%s over HTTP: status %d: %s", c.kind, code, answer)
		}
		sameNumbers(t, c.kind+" over HTTP", numbers(t, answer), floats(want.Outputs[0]), c.tolerance)
	}
	code, answer := a.overHTTP(t, model, wire.TypePNG, asPNG.Bytes()[:asPNG.Len()/2])
	if code != http.StatusBadRequest || !strings.Contains(answer, "bad_request: image/png body: ") {
		t.Errorf("half a PNG: HTTP status %d: %s", code, answer)
	}
}

// sunset is a picture whose colours change from corner to corner.
func sunset(size int) *image.NRGBA {
	img := image.NewNRGBA(image.Rect(0, 0, size, size))
	for y := range size {
		for x := range size {
			img.SetNRGBA(x, y, color.NRGBA{uint8(255 * x / size), uint8(255 * y / size), uint8(120 + 100*(x-y)/size), 255})
		}
	}
	return img
}

// TestImagesAreAnsweredLikeTheirPixels has Go's decoders, as the reference engine has none, and a
// model that takes bytes by preprocess.
func TestImagesAreAnsweredLikeTheirPixels(t *testing.T) {
	r := newRepository(t)
	r.write(t, "colours/model.yaml", `name: colours
slo: 200ms
timeout: 60s
max_batch: 8
inputs: [{name: x, dtype: FP32, shape: [3, 16, 16]}]
outputs: [{name: y, dtype: FP32, shape: [3, 16, 16]}]
preprocess: {x: {accept: [UINT8], scale: 0.5, mean: [1, 2, 3], std: [1, 2, 4]}}
`)
	r.write(t, "colours/1/model.pt", "gpulet-ref 1\ninput x FP32\naffine y FP32 0 2 x\n")
	r.doubling(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "colours", "double")
	a := newAsker(t, s)
	askForPictures(t, a, "colours", "x", 3, sunset(16), 1e-5)
	if code, answer := a.overHTTP(t, "double", wire.TypePNG, []byte("no matter what")); code != http.StatusBadRequest || !strings.Contains(answer, "takes no images") {
		t.Errorf("an image for a model of vectors: HTTP status %d: %s", code, answer)
	}
	f := load(t, s, "--rates", "colours=50,double=20", "--duration", "2s", "--body", "jpeg", "--via", "nats")
	for name, m := range f.Models {
		allRight(t, name, m)
	}
}

// TestDigitsAsImages has libjpeg-turbo, where the engine was built with it, and a model that takes
// bytes itself. The two decoders round differently, by one part of 255.
func TestDigitsAsImages(t *testing.T) {
	requireTorch(t)
	s := harness.Up(t, harness.Config{Models: lenetOnly(t), Engine: "torch"})
	s.WaitReady(t, "lenet")
	samples := digits(t)
	a := newAsker(t, s)
	for i := range 3 {
		digit := &image.Gray{Pix: samples.Request(i, 1).Inputs[0].Data, Stride: 28, Rect: image.Rect(0, 0, 28, 28)}
		askForPictures(t, a, "lenet", "input", 1, digit, 0.2)
	}
}
