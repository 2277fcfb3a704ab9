// Which voxels of an axis an output voxel reads and with which weights, for host and device. Positions are
// fractions of whole numbers: all devices, and the forward and the backward pass, agree on them exactly.
#pragma once

#include "base/host_device.hpp"

namespace vesal::kernels {

// Extents are at most 32767: then every product below fits 32 bits.
inline constexpr int kLargestResizeExtent = 32767;

struct ResizeAxis {
  int in = 1;
  int out = 1;
  bool nearest = false;

  // y[o] = (1 - fraction) * x[first] + fraction * x[second]; second == first where fraction is 0.
  struct Taps {
    int first;
    int second;
    float fraction;
  };

  VESAL_HOST_DEVICE Taps taps(int o) const {
    if (nearest) {
      const int source =
          static_cast<int>(static_cast<unsigned>(o) * static_cast<unsigned>(in) / static_cast<unsigned>(out));
      return {source, source, 0.0f};
    }
    // source = (o + 1/2) in / out - 1/2 = numerator / (2 out)
    const int numerator = (2 * o + 1) * in - out;
    if (numerator <= 0) {
      return {0, 0, 0.0f};
    }
    const int first = numerator / (2 * out);
    const int rest = numerator - first * 2 * out;
    if (first >= in - 1 || rest == 0) {
      return {first < in ? first : in - 1, first < in ? first : in - 1, 0.0f};
    }
    return {first, first + 1, static_cast<float>(rest) / static_cast<float>(2 * out)};
  }

  // The outputs [begin, end) that read input i; empty where the axis shrinks and none does.
  struct Range {
    int begin;
    int end;
  };

  VESAL_HOST_DEVICE Range readers(int i) const {
    if (nearest) {
      return {ceil_ratio(i * out, in), ceil_ratio((i + 1) * out, in)};
    }
    // Those whose source is above i - 1 and below i + 1; all beyond for the last voxel, all before for the
    // first.
    Range range;
    const int above = (2 * i - 1) * out - in;
    range.begin = i == 0 || above < 0 ? 0 : above / (2 * in) + 1;
    range.end = i == in - 1 ? out : ceil_ratio((2 * i + 3) * out - in, 2 * in);
    range.end = range.end < 0 ? 0 : (range.end > out ? out : range.end);
    return range;
  }

  // The weight of input i in output o, for o in readers(i).
  VESAL_HOST_DEVICE float weight(int o, int i) const {
    const Taps t = taps(o);
    return t.first == i ? 1.0f - t.fraction : (t.second == i ? t.fraction : 0.0f);
  }

 private:
  // a / b rounded up, for b > 0; 0 for a <= 0.
  VESAL_HOST_DEVICE static int ceil_ratio(int a, int b) { return a <= 0 ? 0 : (a - 1) / b + 1; }
};

}  // namespace vesal::kernels
