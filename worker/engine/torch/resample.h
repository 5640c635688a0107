// Resampling of interleaved rows of 8 bits into planes of another size.
//
// The filter is the triangle of bilinear interpolation, stretched by the scale where the picture
// shrinks, so that every source pixel counts: what Pillow's BILINEAR and torchvision's
// antialias=True do. The arithmetic is that of worker/internal/images (resample.go), integer by
// integer, so that both decoders give the same answer for the same pixels.
#pragma once

#include <cstdint>
#include <vector>

namespace gle {

struct Size {
  int width, height;
};

// How many rows and columns of pixels the picture covers: less than there are, by a fraction, where
// the last ones stand for fewer pixels of the original.
struct Extent {
  double width, height;
};

// The weights of one axis: output i is the sum over k < count[i] of weight[i * most + k] times
// input first[i] + k, in units of 1/2^14.
struct Taps {
  int most;        // taps of an output
  bool identical;  // every output is the input of the same index
  std::vector<int> first, count;
  std::vector<int16_t> weight;

  Taps(int in, double extent, int out);
};

// Four floats that are multiplied and added at once.
typedef float Lanes __attribute__((vector_size(16)));

// Resamples a picture row by row. The caller keeps a ring of source rows.
class Resampler {
 public:
  Resampler(int channels, Size in, Extent extent, Size out);

  // How many source rows the ring has to hold.
  int rows_needed() const {
    return down_.most;
  }
  // The source row behind the last that output row y needs.
  int end_row(int y) const {
    return down_.first[y] + down_.count[y];
  }
  // Writes output row y into every plane of pixels. Source row s is at slot s modulo rows_needed().
  void row(int y, const uint8_t* ring, uint8_t* pixels);

 private:
  const uint8_t* mix_rows(int y, const uint8_t* ring);
  void mix_columns(const uint8_t* row, uint8_t* out);
  void mix_grey(const uint8_t* row, uint8_t* out) const;
  void mix_colours(const uint8_t* row, uint8_t* out);

  int channels_;
  Size in_, out_;
  Taps across_, down_;
  std::vector<int32_t> sums_;   // of a row
  std::vector<uint8_t> mixed_;  // a row between the two passes
  std::vector<Lanes> pixels_;   // the same, a pixel of three colours each
};

}  // namespace gle
