#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

// The loops below are what -O3 vectorises and -O2 does not: 2.5 times faster.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3")
#endif

namespace gle {
namespace {

constexpr int kBits = 14;  // weights and their sums of products stay inside int16 and int32
constexpr int kOne = 1 << kBits;

uint8_t to_byte(int32_t sum) {
  return static_cast<uint8_t>((sum + kOne / 2) >> kBits);
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
      mixed_(static_cast<size_t>(in.width) * channels) {}

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
  int32_t* const sums = sums_.data();
  for (int k = 0; k < down_.count[y]; k++) {
    const uint8_t* const in = source(k);
    const int16_t w = weight[k];
    for (size_t i = 0; i < n; i++) sums[i] += static_cast<int16_t>(in[i]) * w;
  }
  uint8_t* const out = mixed_.data();
  for (size_t i = 0; i < n; i++) out[i] = static_cast<uint8_t>(sums[i] >> kBits);
  return out;
}

// One row resampled and taken apart into its channels, whose planes are one picture apart.
void Resampler::mix_columns(const uint8_t* row, uint8_t* out) const {
  const size_t plane = static_cast<size_t>(out_.width) * out_.height;
  const int channels = channels_;
  if (across_.identical) {
    for (int c = 0; c < channels; c++) {
      for (int x = 0; x < out_.width; x++) out[c * plane + x] = row[x * channels + c];
    }
    return;
  }
  for (int x = 0; x < out_.width; x++) {
    const int16_t* const weight = &across_.weight[static_cast<size_t>(x) * across_.most];
    const uint8_t* const in = row + static_cast<size_t>(across_.first[x]) * channels;
    const int taps = across_.count[x];
    if (channels == 1) {
      int32_t grey = 0;
      for (int k = 0; k < taps; k++) grey += in[k] * weight[k];
      out[x] = to_byte(grey);
      continue;
    }
    int32_t red = 0, green = 0, blue = 0;
    for (int k = 0; k < taps; k++) {
      const int32_t w = weight[k];
      red += in[3 * k] * w;
      green += in[3 * k + 1] * w;
      blue += in[3 * k + 2] * w;
    }
    out[x] = to_byte(red);
    out[plane + x] = to_byte(green);
    out[2 * plane + x] = to_byte(blue);
  }
}

}  // namespace gle
