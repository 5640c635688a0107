package payload

import (
	"bytes"
	"image/jpeg"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/tensor"
)

func TestJPEGsHaveTheInputsSizeAndColours(t *testing.T) {
	for _, shape := range [][]int64{{3, 24, 40}, {1, 28, 28}} {
		spec := tensor.Spec{Name: "x", DType: tensor.UINT8, Shape: shape}
		items, err := JPEGs(spec, 3, 7)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			img, err := jpeg.Decode(bytes.NewReader(it.Image))
			if err != nil {
				t.Fatal(err)
			}
			if size := img.Bounds(); size.Dy() != int(shape[1]) || size.Dx() != int(shape[2]) || it.ContentType != "image/jpeg" || it.Label != -1 {
				t.Errorf("%v: %v, %s, label %d", shape, size, it.ContentType, it.Label)
			}
		}
		again, _ := JPEGs(spec, 3, 7)
		if d := cmp.Diff(items, again); d != "" {
			t.Error("same seed, other items")
		}
		if bytes.Equal(items[0].Image, items[1].Image) {
			t.Error("two images are the same")
		}
	}
	if _, err := JPEGs(tensor.Spec{Name: "x", Shape: []int64{2, 8, 8}}, 1, 1); err == nil {
		t.Error("a JPEG of two channels was made")
	}
}

// TestJPEGsAreAboutAsLargeAsPhotographs: between 0.3 and 3 bits per pixel, as the web's are.
func TestJPEGsAreAboutAsLargeAsPhotographs(t *testing.T) {
	items, err := JPEGs(tensor.Spec{Name: "x", Shape: []int64{3, 224, 224}}, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		if bits := 8 * float64(len(it.Image)) / (224 * 224); bits < 0.3 || bits > 3 {
			t.Errorf("%d bytes, %.2f bits per pixel", len(it.Image), bits)
		}
	}
}
