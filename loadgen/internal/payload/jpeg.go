package payload

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"math"
	"math/rand/v2"

	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// quality is that of the JPEGs that are sent, as cameras and web sites use it.
const quality = 85

// JPEGs makes n items of one JPEG each, of the size of a model's image input: random pictures whose
// colours change smoothly, with a little noise, which compress about as photographs do. What is
// right for them is not known. The same seed gives the same items.
func JPEGs(spec tensor.Spec, n int, seed uint64) ([]Item, error) {
	if len(spec.Shape) != 3 || spec.Shape[0] != 1 && spec.Shape[0] != 3 {
		return nil, fmt.Errorf("input %q: shape %v: expected [3 height width] or [1 height width]", spec.Name, spec.Shape)
	}
	rng := rand.New(rand.NewPCG(seed, 0x6a706567))
	items := make([]Item, n)
	for i := range items {
		var b bytes.Buffer
		img := picture(int(spec.Shape[0]), int(spec.Shape[1]), int(spec.Shape[2]), rng)
		if err := jpeg.Encode(&b, img, &jpeg.Options{Quality: quality}); err != nil {
			return nil, fmt.Errorf("input %q: %w", spec.Name, err)
		}
		items[i] = Item{Image: b.Bytes(), ContentType: wire.TypeJPEG, ImageInput: spec.Name, Label: -1}
	}
	return items, nil
}

// wave is a pattern over a picture of unit size.
type wave struct{ x, y, phase, height float64 }

// waves are patterns of falling height: like photographs, pictures have most of their light in what
// is large.
func waves(rng *rand.Rand) []wave {
	ws := make([]wave, 12)
	for i := range ws {
		f := float64(2 + 4*i)
		ws[i] = wave{f * (rng.Float64() - 0.5) * 2, f * (rng.Float64() - 0.5) * 2, 2 * math.Pi * rng.Float64(), 60 / (1 + float64(i)/2)}
	}
	return ws
}

func light(ws []wave, u, v float64, rng *rand.Rand) uint8 {
	sum := 128 + 12*(rng.Float64()-0.5)
	for _, w := range ws {
		sum += w.height * math.Sin(w.x*u+w.y*v+w.phase)
	}
	return uint8(max(0, min(255, sum)))
}

func picture(channels, height, width int, rng *rand.Rand) image.Image {
	var planes [3][]wave
	for c := range channels {
		planes[c] = waves(rng)
	}
	bounds := image.Rect(0, 0, width, height)
	grey, colours := image.NewGray(bounds), image.NewRGBA(bounds)
	for y := range height {
		for x := range width {
			u, v := float64(x)/float64(width), float64(y)/float64(height)
			var c [3]uint8
			for k := range channels {
				c[k] = light(planes[k], u, v, rng)
			}
			if channels == 1 {
				grey.SetGray(x, y, color.Gray{c[0]})
			} else {
				colours.SetRGBA(x, y, color.RGBA{c[0], c[1], c[2], 255})
			}
		}
	}
	if channels == 1 {
		return grey
	}
	return colours
}
