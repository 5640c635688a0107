package images

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

// native is LibTorch's engine with its libjpeg; the test is skipped where there is none.
func native(t testing.TB) *Decoder {
	t.Helper()
	e, err := engine.Open(engine.Torch, engine.Options{Library: enginetest.TorchLibrary(t)})
	if err != nil {
		t.Fatal(err)
	}
	decoder := engine.JPEG(e)
	if decoder == nil {
		if os.Getenv(enginetest.RequireTorchEnv) == "1" {
			t.Fatalf("%s decodes no JPEGs: was libjpeg-dev there when it was built?", e.Info().Library)
		}
		t.Skip("the engine was built without libjpeg")
	}
	return New(decoder)
}

// decoders are Go's and, where it is built, the native one.
func decoders(t *testing.T, f func(t *testing.T, d *Decoder)) {
	t.Run("go", func(t *testing.T) { f(t, New(nil)) })
	t.Run("native", func(t *testing.T) { f(t, native(t)) })
}

func file(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func typeOf(name string) string {
	if strings.HasSuffix(name, ".png") {
		return wire.TypePNG
	}
	return wire.TypeJPEG
}

// decode decodes into a picture that was full of something else.
func decode(t testing.TB, d *Decoder, data []byte, contentType string, to Shape) []byte {
	t.Helper()
	pixels := bytes.Repeat([]byte{0xa5}, to.Bytes())
	if err := d.Decode(pixels, data, contentType, to); err != nil {
		t.Fatalf("%+v: %v", to, err)
	}
	return pixels
}

// differ is the largest and the mean difference of two pictures.
func differ(t testing.TB, a, b []byte) (largest int, mean float64) {
	t.Helper()
	if len(a) != len(b) {
		t.Fatalf("%d and %d pixels", len(a), len(b))
	}
	for i := range a {
		d := int(a[i]) - int(b[i])
		largest = max(largest, d, -d)
		mean += math.Abs(float64(d)) / float64(len(a))
	}
	return largest, mean
}

func near(t testing.TB, what string, got, want []byte, largest int, mean float64) {
	t.Helper()
	if l, m := differ(t, got, want); l > largest || m > mean {
		t.Errorf("%s: pixels differ by up to %d, %.2f on average: expected at most %d and %.2f", what, l, m, largest, mean)
	}
}

// smooth is a picture like a photograph: colours that change slowly, and a little noise.
func smooth(width, height int, seed uint64) *image.NRGBA {
	rng := rand.New(rand.NewPCG(seed, 1))
	phase := [3]float64{6 * rng.Float64(), 6 * rng.Float64(), 6 * rng.Float64()}
	img := image.NewNRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			var c [3]uint8
			for k, p := range phase {
				v := 127 + 100*math.Sin(p+4*float64(x)/float64(width))*math.Cos(p-3*float64(y)/float64(height)) + 4*rng.Float64()
				c[k] = uint8(v)
			}
			img.SetNRGBA(x, y, color.NRGBA{c[0], c[1], c[2], 255})
		}
	}
	return img
}

func asJPEG(t testing.TB, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, &jpeg.Options{Quality: 90}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func asPNG(t testing.TB, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// convert is img drawn, by colour model alone, into another kind of picture.
func convert(img image.Image, to interface {
	image.Image
	Set(x, y int, c color.Color)
},
) image.Image {
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			to.Set(x, y, img.At(x, y))
		}
	}
	return to
}

// planar is img taken apart pixel by pixel through the slow, general interface.
func planar(img image.Image, channels int) []byte {
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

func TestPNGsOfEveryKindComeOutAsTheyAre(t *testing.T) {
	photo := smooth(13, 9, 1)
	bounds := photo.Bounds()
	palette := color.Palette{color.NRGBA{255, 0, 0, 255}, color.NRGBA{10, 200, 30, 255}, color.NRGBA{0, 0, 250, 255}, color.Gray{7}}
	translucent := smooth(13, 9, 2)
	for i := 3; i < len(translucent.Pix); i += 4 {
		translucent.Pix[i] = 128
	}
	for name, img := range map[string]image.Image{
		"truecolour":  photo,
		"transparent": translucent,
		"grey":        convert(photo, image.NewGray(bounds)),
		"16-bit grey": convert(photo, image.NewGray16(bounds)),
		"48-bit":      convert(photo, image.NewRGBA64(bounds)),
		"64-bit":      convert(translucent, image.NewNRGBA64(bounds)),
		"palette":     convert(photo, image.NewPaletted(bounds, palette)),
	} {
		for _, channels := range []int{3, 1} {
			got := decode(t, New(nil), asPNG(t, img), wire.TypePNG, Shape{channels, 9, 13})
			opaque := img
			if name == "transparent" || name == "64-bit" {
				if channels == 1 {
					continue // the general conversion to grey multiplies by transparency
				}
			}
			near(t, fmt.Sprintf("%s in %d channels", name, channels), got, planar(opaque, channels), 1, 0.2)
		}
	}
}

func TestResizesAsPillowDoes(t *testing.T) {
	for _, to := range []Shape{{3, 19, 23}, {3, 12, 61}, {3, 90, 100}, {3, 47, 7}} {
		got := decode(t, New(nil), file(t, "picture.png"), wire.TypePNG, to)
		want := decode(t, New(nil), file(t, fmt.Sprintf("picture-%dx%d.png", to.Width, to.Height)), wire.TypePNG, to)
		near(t, fmt.Sprintf("%+v", to), got, want, 1, 0.1)
	}
}

func TestEveryKindOfJPEGIsThePicture(t *testing.T) {
	decoders(t, func(t *testing.T, d *Decoder) {
		for _, to := range []Shape{{3, 47, 61}, {1, 47, 61}, {3, 20, 30}, {3, 5, 7}, {1, 60, 80}} {
			want := decode(t, New(nil), file(t, "picture.png"), wire.TypePNG, to)
			for _, name := range []string{"baseline-444.jpg", "baseline-422.jpg", "baseline-420.jpg", "progressive.jpg", "grey.jpg"} {
				if name == "grey.jpg" && to.Channels == 3 {
					continue
				}
				got := decode(t, d, file(t, name), wire.TypeJPEG, to)
				near(t, fmt.Sprintf("%s, %+v", name, to), got, want, 24, 3)
			}
		}
	})
}

func TestGreyJPEGHasThreeEqualChannels(t *testing.T) {
	decoders(t, func(t *testing.T, d *Decoder) {
		to := Shape{3, 20, 33}
		got := decode(t, d, file(t, "grey.jpg"), wire.TypeJPEG, to)
		grey := decode(t, d, file(t, "grey.jpg"), wire.TypeJPEG, Shape{1, 20, 33})
		for c := range 3 {
			if !bytes.Equal(got[c*20*33:][:20*33], grey) {
				t.Errorf("channel %d differs from the grey picture", c)
			}
		}
	})
}

// TestDecodersAgree compares the two on pictures of many sizes: smaller, equal, larger, odd, and so
// much larger that the native one lets the DCT shrink them.
func TestDecodersAgree(t *testing.T) {
	d := native(t)
	for _, size := range []image.Point{{1, 1}, {32, 32}, {33, 31}, {64, 48}, {65, 200}, {300, 299}, {640, 480}} {
		data := asJPEG(t, smooth(size.X, size.Y, uint64(size.X)))
		for _, to := range []Shape{{3, 32, 32}, {1, 32, 32}, {3, 224, 224}, {3, 31, 45}} {
			near(t, fmt.Sprintf("%v to %+v", size, to),
				decode(t, d, data, wire.TypeJPEG, to), decode(t, New(nil), data, wire.TypeJPEG, to), 16, 2)
		}
	}
}

func TestTruncatedImagesAreBroken(t *testing.T) {
	decoders(t, func(t *testing.T, d *Decoder) {
		for _, name := range []string{"baseline-420.jpg", "progressive.jpg", "grey.jpg", "picture.png"} {
			data := file(t, name)
			to := Shape{3, 20, 20}
			pixels := make([]byte, to.Bytes())
			for n := 0; n < len(data)-2; n += 7 { // without a JPEG's end marker alone everything is there
				err := d.Decode(pixels, data[:n], typeOf(name), to)
				if err == nil || !strings.HasPrefix(err.Error(), typeOf(name)+" body: ") {
					t.Fatalf("%d of %d bytes of %s: error %v", n, len(data), name, err)
				}
			}
		}
	})
}

func TestRefusesByHeader(t *testing.T) {
	decoders(t, func(t *testing.T, d *Decoder) {
		for _, c := range []struct {
			name        string
			data        []byte
			contentType string
			want        string
		}{
			{"bomb", header(0xc0, 8, 65535, 65535, 3), wire.TypeJPEG, "65535 x 65535 pixels: expected at most 16777216 in all"},
			{"PNG bomb", pngHeader(1<<31, 1<<31), wire.TypePNG, "2147483648 x 2147483648 pixels: expected at most"},
			{"one pixel too many", pngHeader(4097, 4096), wire.TypePNG, "4097 x 4096 pixels: expected at most"},
			{"no rows", header(0xc0, 8, 10, 0, 3), wire.TypeJPEG, "10 x 0 pixels: expected at least"},
			{"no columns", pngHeader(0, 3), wire.TypePNG, "0 x 3 pixels"},
			{"CMYK", file(t, "cmyk.jpg"), wire.TypeJPEG, "4 components (CMYK): expected 1 (grey) or 3"},
			{"two components", header(0xc0, 8, 10, 10, 2), wire.TypeJPEG, "2 components: expected"},
			{"12 bits", header(0xc1, 12, 10, 10, 3), wire.TypeJPEG, "12 bits per colour: expected 8"},
			{"arithmetic", header(0xc9, 8, 10, 10, 3), wire.TypeJPEG, "frame type SOF9"},
			{"lossless", header(0xc3, 8, 10, 10, 3), wire.TypeJPEG, "frame type SOF3"},
			{"short frame header", []byte{0xff, 0xd8, 0xff, 0xc0, 0, 5, 8, 0, 1}, wire.TypeJPEG, "a frame header of 3 bytes"},
			{"segment of no length", []byte{0xff, 0xd8, 0xff, 0xe0, 0, 1, 9, 9, 9, 9}, wire.TypeJPEG, "a segment of 1 bytes"},
			{"segment beyond the end", []byte{0xff, 0xd8, 0xff, 0xe0, 200, 1, 9, 9, 9, 9}, wire.TypeJPEG, "a segment of 51201 bytes: expected 2 to 6"},
			{"scan first", []byte{0xff, 0xd8, 0xff, 0xda, 0, 2}, wire.TypeJPEG, "no frame header before its first scan"},
			{"end first", []byte{0xff, 0xd8, 0xff, 0xd9}, wire.TypeJPEG, "no frame header"},
			{"fill to the end", bytes.Repeat([]byte{0xff}, 1), wire.TypeJPEG, `found 1 bytes that start with "\xff"`},
			{"only fill", []byte{0xff, 0xd8, 0xff, 0xff, 0xff}, wire.TypeJPEG, "ends before its frame header"},
			{"too many scans", append(header(0xc2, 8, 64, 64, 3), bytes.Repeat(startOfScan, 101)...), wire.TypeJPEG, "101 scans: expected at most 100"},
			{"PNG called JPEG", file(t, "picture.png"), wire.TypeJPEG, "found a PNG: expected image/jpeg"},
			{"JPEG called PNG", file(t, "grey.jpg"), wire.TypePNG, "found a JPEG: expected image/png"},
			{"nothing", nil, wire.TypePNG, "found 0 bytes"},
			{"PNG without header", append(append([]byte(nil), pngSignature...), bytes.Repeat([]byte{0}, 40)...), wire.TypePNG, "no IHDR chunk"},
			{"another type", file(t, "grey.jpg"), "image/webp", "image/webp body: expected image/jpeg or image/png"},
		} {
			to := Shape{3, 8, 8}
			err := d.Decode(make([]byte, to.Bytes()), c.data, c.contentType, to)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: error %v: expected %q", c.name, err, c.want)
			}
		}
	})
}

func TestRefusesShapesThatNoModelHas(t *testing.T) {
	for _, to := range []Shape{{2, 8, 8}, {3, 0, 8}, {3, 8, -1}} {
		if err := New(nil).Decode(make([]byte, max(0, to.Bytes())), file(t, "grey.jpg"), wire.TypeJPEG, to); err == nil {
			t.Errorf("%+v was decoded", to)
		}
	}
	if err := New(nil).Decode(make([]byte, 191), file(t, "grey.jpg"), wire.TypeJPEG, Shape{3, 8, 8}); err == nil {
		t.Error("a picture of 192 bytes was decoded into 191")
	}
}

// TestWeightsSumToOne holds for all sizes, so that a white picture is white in any size, and the
// ring of rows always holds those that are needed.
func TestWeightsSumToOne(t *testing.T) {
	for _, size := range [][2]int{{1, 1}, {1, 224}, {224, 1}, {224, 224}, {500, 224}, {4000, 28}, {223, 224}, {225, 224}, {3, 7}} {
		in, out := size[0], size[1]
		w, end := newTaps(in, out), 0
		for i := range out {
			sum := int32(0)
			for _, v := range w.weight[i*w.most:][:w.count[i]] {
				sum += v
			}
			if sum != one {
				t.Errorf("%d to %d: weights of %d sum to %d/%d", in, out, i, sum, one)
			}
			next := w.first[i] + w.count[i]
			if w.first[i] < 0 || next > in || next < end || w.first[i] < end-w.most || w.count[i] > w.most {
				t.Errorf("%d to %d: output %d takes inputs %d to %d, after %d, of at most %d", in, out, i, w.first[i], next, end, w.most)
			}
			end = next
		}
	}
}

func TestShrinkingCountsEveryPixel(t *testing.T) {
	// One white pixel in 64 x 64 leaves its light behind wherever it is.
	img := image.NewGray(image.Rect(0, 0, 64, 64))
	for _, at := range []image.Point{{0, 0}, {31, 7}, {63, 63}} {
		clear(img.Pix)
		for dy := range 2 {
			for dx := range 2 {
				img.SetGray(min(at.X+dx, 63), min(at.Y+dy, 63), color.Gray{255})
			}
		}
		got := decode(t, New(nil), asPNG(t, img), wire.TypePNG, Shape{1, 8, 8})
		sum := 0
		for _, v := range got {
			sum += int(v)
		}
		if sum == 0 {
			t.Errorf("the light at %v was lost", at)
		}
	}
}
