#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

// The loops below are what -O3 vectorises and -O2 does not, and AVX2, where the processor has it,
// multiplies 32-bit numbers, which SSE2 does not.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3")
#endif
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define GLE_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define GLE_WIDE
#endif

namespace gle {
namespace {

constexpr int kBits = 14;  // weights and their sums of products stay inside int16 and int32
constexpr int kOne = 1 << kBits;

// sums[i] += a[i] * wa + b[i] * wb
GLE_WIDE void add_rows(int32_t* __restrict sums, const uint8_t* __restrict a, int32_t wa,
                       const uint8_t* __restrict b, int32_t wb, size_t n) {
  for (size_t i = 0; i < n; i++) sums[i] += a[i] * wa + b[i] * wb;
}

GLE_WIDE void round_row(uint8_t* __restrict out, const int32_t* __restrict sums, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = static_cast<uint8_t>(sums[i] >> kBits);
}

}  // namespace

Taps::Taps(int in, double extent, int out) : first(out), count(out) {
  const double scale = extent / out;
  const double stretch = std::max(scale, 1.0);
  identical = in == out && scale == 1;
  most = std::min(in, static_cast<int>(std::ceil(stretch)) * 2 + 1);
  weight.resize(static_cast<size_t>(out) * most);
  std::vector<double> exact(most);
  for (int i = 0; i < out; i++) {
    const double center = (i + 0.5) * scale;
    const int from = std::max(0, static_cast<int>(center - stretch + 0.5));
    const int to = std::min(in, static_cast<int>(center + stretch + 0.5));
    double total = 0;
    for (int k = 0; k < to - from; k++) {
      exact[k] = std::max(0.0, 1 - std::abs((k + from - center + 0.5) / stretch));
      total += exact[k];
    }
    int16_t* w = &weight[static_cast<size_t>(i) * most];
    int rest = kOne;
    int peak = 0;
    int used = 0;
    for (int k = 0; k < to - from; k++) {
      w[k] = static_cast<int16_t>(std::floor(exact[k] / total * kOne + 0.5));
      rest -= w[k];
      if (w[k] > w[peak]) peak = k;
      if (w[k] != 0) used = k + 1;
    }
    w[peak] = static_cast<int16_t>(w[peak] + rest);  // they sum to one: white stays white
    first[i] = from;
    count[i] = std::max(used, peak + 1);
  }
}

Resampler::Resampler(int channels, Size in, Extent extent, Size out)
    : channels_(channels),
      in_(in),
      out_(out),
      across_(in.width, extent.width, out.width),
      down_(in.height, extent.height, out.height),
      sums_(static_cast<size_t>(in.width) * channels),
      mixed_(static_cast<size_t>(in.width) * channels),
      pixels_(channels == 3 ? in.width : 0) {}

void Resampler::row(int y, const uint8_t* ring, uint8_t* pixels) {
  mix_columns(mix_rows(y, ring), pixels + static_cast<size_t>(y) * out_.width);
}

// The weighted sum of the source rows of output row y.
const uint8_t* Resampler::mix_rows(int y, const uint8_t* ring) {
  const size_t n = mixed_.size();
  const int16_t* weight = &down_.weight[static_cast<size_t>(y) * down_.most];
  const auto source = [&](int k) { return ring + n * ((down_.first[y] + k) % down_.most); };
  if (down_.count[y] == 1) return source(0);
  std::fill(sums_.begin(), sums_.end(), kOne / 2);
  // Two at a time: the sums go through memory half as often.
  for (int k = 0; k < down_.count[y]; k += 2) {
    const bool two = k + 1 < down_.count[y];
    add_rows(sums_.data(), source(k), weight[k], source(two ? k + 1 : k), two ? weight[k + 1] : 0,
             n);
  }
  round_row(mixed_.data(), sums_.data(), n);
  return mixed_.data();
}

// One row resampled and taken apart into its channels, whose planes are one picture apart.
void Resampler::mix_columns(const uint8_t* row, uint8_t* out) {
  if (across_.identical) {
    const size_t plane = static_cast<size_t>(out_.width) * out_.height;
    for (int c = 0; c < channels_; c++) {
      for (int x = 0; x < out_.width; x++) out[c * plane + x] = row[x * channels_ + c];
    }
  } else if (channels_ == 1) {
    mix_grey(row, out);
  } else {
    mix_colours(row, out);
  }
}

void Resampler::mix_grey(const uint8_t* row, uint8_t* out) const {
  for (int x = 0; x < out_.width; x++) {
    const int16_t* const weight = &across_.weight[static_cast<size_t>(x) * across_.most];
    const uint8_t* const in = row + across_.first[x];
    int32_t sum = kOne / 2;
    for (int k = 0; k < across_.count[x]; k++) sum += in[k] * weight[k];
    out[x] = static_cast<uint8_t>(sum >> kBits);
  }
}

// Four lanes for three colours. Bytes times weights and their sums stay below 2^24: as floats,
// which every processor multiplies four at a time, they are exact.
void Resampler::mix_colours(const uint8_t* row, uint8_t* out) {
  const size_t plane = static_cast<size_t>(out_.width) * out_.height;
  for (int x = 0; x < in_.width; x++) {
    pixels_[x] = Lanes{static_cast<float>(row[3 * x]), static_cast<float>(row[3 * x + 1]),
                       static_cast<float>(row[3 * x + 2]), 0};
  }
  for (int x = 0; x < out_.width; x++) {
    const int16_t* const weight = &across_.weight[static_cast<size_t>(x) * across_.most];
    const Lanes* const in = &pixels_[across_.first[x]];
    Lanes sum = {kOne / 2, kOne / 2, kOne / 2, 0};
    for (int k = 0; k < across_.count[x]; k++) sum += in[k] * static_cast<float>(weight[k]);
    for (int c = 0; c < 3; c++) {
      out[c * plane + x] = static_cast<uint8_t>(static_cast<int>(sum[c]) >> kBits);
    }
  }
}

}  // namespace gle
