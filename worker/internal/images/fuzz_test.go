package images

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

// seed adds every picture of testdata, whole and cut.
func seed(f *testing.F) {
	names, err := filepath.Glob("testdata/*.*g")
	if err != nil || len(names) == 0 {
		f.Fatalf("%d pictures in testdata, %v", len(names), err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)/2])
	}
	f.Add(header(0xc2, 8, 16, 16, 3))
	f.Add(pngHeader(3, 3))
}

// tooLarge keeps the fuzzer from spending its time on pictures that are right and slow.
func tooLarge(data []byte) bool { return len(data) > 1<<16 }

// FuzzDecode checks that no body, as a JPEG or as a PNG, does more than fail, and that what is
// decoded fills the picture: the same one every time.
func FuzzDecode(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		if tooLarge(data) {
			t.Skip()
		}
		for _, kind := range []string{wire.TypeJPEG, wire.TypePNG} {
			for _, to := range []Shape{{3, 5, 9}, {1, 9, 5}} {
				sameTwice(t, New(nil), data, kind, to)
			}
		}
	})
}

// FuzzNativeJPEG is FuzzDecode for the engine's decoder.
func FuzzNativeJPEG(f *testing.F) {
	e, err := engine.Open(engine.Torch, engine.Options{Library: enginetest.TorchLibrary(f)})
	if err != nil {
		f.Fatal(err)
	}
	decoder := engine.JPEG(e)
	if decoder == nil {
		f.Skip("the engine was built without libjpeg")
	}
	seed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		if tooLarge(data) {
			t.Skip()
		}
		for _, to := range []Shape{{3, 5, 9}, {1, 9, 5}, {3, 1, 1}} {
			sameTwice(t, New(decoder), data, wire.TypeJPEG, to)
		}
	})
}

func sameTwice(t *testing.T, d *Decoder, data []byte, kind string, to Shape) {
	t.Helper()
	a, b := make([]byte, to.Bytes()), make([]byte, to.Bytes())
	for i := range b {
		b[i] = 0xff
	}
	errA, errB := d.Decode(a, data, kind, to), d.Decode(b, data, kind, to)
	if (errA == nil) != (errB == nil) {
		t.Fatalf("once %v, then %v", errA, errB)
	}
	if errA == nil && string(a) != string(b) {
		t.Fatalf("%+v: two pictures of the same bytes", to)
	}
}

// header is a JPEG of nothing but a frame header.
func header(marker byte, precision byte, width, height uint16, components byte) []byte {
	return []byte{
		0xff, 0xd8, 0xff, marker, 0, 8,
		precision, byte(height >> 8), byte(height), byte(width >> 8), byte(width), components,
	}
}

func pngHeader(width, height uint32) []byte {
	b := append([]byte(nil), pngSignature...)
	b = append(b, 0, 0, 0, 13, 'I', 'H', 'D', 'R')
	b = append(b, byte(width>>24), byte(width>>16), byte(width>>8), byte(width))
	b = append(b, byte(height>>24), byte(height>>16), byte(height>>8), byte(height))
	return append(b, 8, 2, 0, 0, 0)
}
