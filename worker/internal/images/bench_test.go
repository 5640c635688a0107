package images

import (
	"fmt"
	"image"
	"testing"

	"github.com/gpulet/gpulet/shared/wire"
)

// BenchmarkDecode decodes pictures of several sizes for a model of 224 x 224.
func BenchmarkDecode(b *testing.B) {
	to := Shape{3, 224, 224}
	for _, size := range []image.Point{{224, 224}, {500, 375}, {1920, 1080}} {
		img := smooth(size.X, size.Y, 1)
		for _, c := range []struct {
			name    string
			decoder func(testing.TB) *Decoder
			data    []byte
			kind    string
		}{
			{"jpeg/native", native, asJPEG(b, img), wire.TypeJPEG},
			{"jpeg/go", func(testing.TB) *Decoder { return New(nil) }, asJPEG(b, img), wire.TypeJPEG},
			{"png", func(testing.TB) *Decoder { return New(nil) }, asPNG(b, img), wire.TypePNG},
		} {
			b.Run(fmt.Sprintf("%s/%dx%d", c.name, size.X, size.Y), func(b *testing.B) {
				d := c.decoder(b)
				pixels := make([]byte, to.Bytes())
				b.ReportAllocs()
				for b.Loop() {
					if err := d.Decode(pixels, c.data, c.kind, to); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(c.data))/1000, "kB/image")
			})
		}
	}
}

// BenchmarkResize is the resizing alone.
func BenchmarkResize(b *testing.B) {
	to := Shape{3, 224, 224}
	pixels := make([]byte, to.Bytes())
	s, err := open(asPNG(b, smooth(500, 375, 1)), wire.TypePNG, 3)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		resize(pixels, to, s)
	}
	if pixels[0] == 0 {
		b.Fatal("nothing was resized")
	}
}
