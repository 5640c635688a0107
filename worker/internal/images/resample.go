package images

import "math"

// The weights of the resampling are whole numbers of 1/2^14. The arithmetic is that of
// worker/engine/torch/resample.cc, integer by integer.
const (
	weightBits = 14
	one        = 1 << weightBits
)

// taps are the weights of one axis: output i is the sum of weight[i*most+k] times input first[i]+k,
// over k < count[i].
type taps struct {
	most         int // taps of an output
	first, count []int
	weight       []int32
}

// newTaps makes the triangle filter of bilinear interpolation, stretched by the scale where the
// picture shrinks, so that every source pixel counts: what Pillow's BILINEAR and torchvision's
// antialias=True do.
func newTaps(in, out int) taps {
	scale := float64(in) / float64(out)
	stretch := max(scale, 1)
	t := taps{most: min(in, 2*int(math.Ceil(stretch))+1), first: make([]int, out), count: make([]int, out)}
	t.weight = make([]int32, out*t.most)
	exact := make([]float64, t.most)
	for i := range out {
		center := (float64(i) + 0.5) * scale
		from := max(0, int(center-stretch+0.5))
		to := min(in, int(center+stretch+0.5))
		total := 0.0
		for k := range to - from {
			exact[k] = max(0, 1-math.Abs((float64(k+from)-center+0.5)/stretch))
			total += exact[k]
		}
		t.first[i] = from
		t.count[i] = quantize(t.weight[i*t.most:], exact[:to-from], total)
	}
	return t
}

// quantize rounds weights that sum to total so that they sum to one: white stays white. It returns
// how many there are up to the last that is not zero.
func quantize(weight []int32, exact []float64, total float64) (used int) {
	rest, peak := int32(one), 0
	for k, w := range exact {
		weight[k] = int32(math.Floor(w/total*one + 0.5))
		rest -= weight[k]
		if weight[k] > weight[peak] {
			peak = k
		}
		if weight[k] != 0 {
			used = k + 1
		}
	}
	weight[peak] += rest
	return max(used, peak+1)
}

// resize fills pixels from the rows of s. Rows are mixed first, then columns: there are fewer rows
// left then, and mixing columns is the dearer of the two.
func resize(pixels []byte, to Shape, s source) {
	across, down := newTaps(s.width, to.Width), newTaps(s.height, to.Height)
	n := s.width * to.Channels
	ring := make([]byte, n*down.most) // row y is at slot y modulo most
	slot := func(y int) []byte { return ring[n*(y%down.most):][:n] }
	sums, mixed := make([]int32, n), make([]byte, n)
	read := 0
	for y := range to.Height {
		for ; read < down.first[y]+down.count[y]; read++ {
			s.row(read, slot(read))
		}
		row := mixed
		if down.count[y] == 1 {
			row = slot(down.first[y])
		} else {
			mixRows(mixed, sums, down, y, slot)
		}
		mixColumns(pixels[y*to.Width:], row, across, to)
	}
}

// mixRows makes the weighted sum of the source rows of output row y.
func mixRows(to []byte, sums []int32, down taps, y int, slot func(int) []byte) {
	for i := range sums {
		sums[i] = one / 2
	}
	for k := range down.count[y] {
		w := down.weight[y*down.most+k]
		for i, v := range slot(down.first[y] + k) {
			sums[i] += int32(v) * w
		}
	}
	for i, v := range sums {
		to[i] = byte(v >> weightBits)
	}
}

// mixColumns resamples one row and takes it apart into its channels, whose planes are one picture
// apart.
func mixColumns(pixels, row []byte, across taps, to Shape) {
	plane := to.Width * to.Height
	for x := range to.Width {
		weights := across.weight[x*across.most:][:across.count[x]]
		from := row[across.first[x]*to.Channels:]
		if to.Channels == 1 {
			sum := int32(one / 2)
			for k, w := range weights {
				sum += int32(from[k]) * w
			}
			pixels[x] = byte(sum >> weightBits)
			continue
		}
		red, green, blue := int32(one/2), int32(one/2), int32(one/2)
		for k, w := range weights {
			red += int32(from[3*k]) * w
			green += int32(from[3*k+1]) * w
			blue += int32(from[3*k+2]) * w
		}
		pixels[x], pixels[plane+x], pixels[2*plane+x] = byte(red>>weightBits), byte(green>>weightBits), byte(blue>>weightBits)
	}
}
