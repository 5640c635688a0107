package engine_test

import (
	"bytes"
	"image"
	"image/color"
	"image/jpeg"
	"os"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

func TestEnginesWithoutAJPEGDecoderSaySo(t *testing.T) {
	e, err := engine.Open(engine.Reference, engine.Options{Library: enginetest.ReferenceLibrary(t)})
	if err != nil {
		t.Fatal(err)
	}
	if e.Info().JPEG || engine.JPEG(e) != nil {
		t.Error("the reference engine claims to decode JPEGs")
	}
	native, ok := e.(engine.JPEGDecoder)
	if !ok {
		t.Fatal("a native engine has no method to refuse a JPEG with")
	}
	err = native.DecodeJPEG(make([]byte, 1), []byte{0xff}, 1, 1, 1)
	if engine.CodeOf(err) != engine.EUNSUPPORTED || !strings.Contains(err.Error(), "decodes no JPEGs") {
		t.Errorf("error %v", err)
	}
}

func TestTorchDecodesJPEGs(t *testing.T) {
	e, err := engine.Open(engine.Torch, engine.Options{Library: enginetest.TorchLibrary(t)})
	if err != nil {
		t.Fatal(err)
	}
	d := engine.JPEG(e)
	if d == nil {
		if os.Getenv(enginetest.RequireTorchEnv) == "1" {
			t.Fatal("the engine was built without libjpeg")
		}
		t.Skip("the engine was built without libjpeg")
	}
	img := image.NewGray(image.Rect(0, 0, 16, 16))
	for i := range img.Pix {
		img.Set(i%16, i/16, color.Gray{200})
	}
	var data bytes.Buffer
	if err := jpeg.Encode(&data, img, nil); err != nil {
		t.Fatal(err)
	}
	pixels := make([]byte, 3*5*4)
	if err := d.DecodeJPEG(pixels, data.Bytes(), 3, 5, 4); err != nil {
		t.Fatal(err)
	}
	for i, v := range pixels {
		if v < 198 || v > 202 {
			t.Fatalf("pixel %d is %d: expected about 200", i, v)
		}
	}
	for name, c := range map[string]struct {
		pixels, data            []byte
		channels, height, width int
		want                    string
	}{
		"no data":         {pixels, nil, 3, 5, 4, "expected 1 or 3 channels that fit"},
		"no picture":      {nil, data.Bytes(), 3, 5, 4, "expected 1 or 3 channels that fit"},
		"too few bytes":   {pixels[:59], data.Bytes(), 3, 5, 4, "3x5x4 in 59 bytes"},
		"two channels":    {pixels[:40], data.Bytes(), 2, 5, 4, "2x5x4"},
		"negative height": {pixels, data.Bytes(), 3, -5, -4, "3x-5x-4"},
		"not a JPEG":      {pixels, []byte("not a JPEG"), 3, 5, 4, "Not a JPEG file"},
		"cut short":       {pixels, data.Bytes()[:data.Len()-20], 3, 5, 4, "JPEG"},
	} {
		err := d.DecodeJPEG(c.pixels, c.data, c.channels, c.height, c.width)
		if engine.CodeOf(err) != engine.EINVAL || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v: expected EINVAL with %q", name, err, c.want)
		}
	}
}
