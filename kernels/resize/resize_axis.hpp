// Which voxels of an axis an output voxel reads and with which weights, for host and device. Positions are
// fractions of whole numbers: all devices, and the forward and the backward pass, agree on them exactly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "base/host_device.hpp"
#include "kernels/context/divider.hpp"
#include "kernels/resize/resize.hpp"

namespace vesal::kernels {

// Extents are at most 32767: then every product below fits 32 bits, but for given scales.
inline constexpr int kLargestResizeExtent = 32767;

// kTaps is the number of voxels that an output may read: 1 (nearest), 2 (linear) or 4 (cubic).
template <int kTaps>
struct ResizeTaps {
  int index[kTaps];  // clamped to the axis
  float weight[kTaps];
};

// Int is int for positions from extents, int64_t for given scales.
template <class Int>
struct ResizeAxis {
  int in = 1;
  int out = 1;
  // The source position of output o is (o * step + start) / width.
  Int step = 2;
  Int start = 0;
  Int width = 2;
  Divider<Int> by_step{2}, by_width{2};

  // first + rest / width, 0 <= rest < width.
  struct Position {
    int first;
    Int rest;
  };

  VESAL_HOST_DEVICE Position at(int o) const { return split(o * step + start); }
  // How far apart neighbouring outputs' positions are.
  VESAL_HOST_DEVICE Position stride() const { return split(step); }
  VESAL_HOST_DEVICE void advance(Position& position, const Position& stride) const {
    position.first += stride.first;
    position.rest += stride.rest;
    if (position.rest >= width) {
      position.rest -= width;
      ++position.first;
    }
  }

  // Weights of voxels that are not read are 0.
  template <int kTaps>
  VESAL_HOST_DEVICE ResizeTaps<kTaps> taps(const Position& position) const {
    const int first = position.first;
    if constexpr (kTaps == 1) {
      return {{clamped(first)}, {1.0f}};
    } else if constexpr (kTaps == 2) {
      const float f = first < 0 || first >= in - 1 ? 0.0f : fraction(position);
      return {{clamped(first), clamped(first + 1)}, {1.0f - f, f}};
    } else {
      // Keys' kernel for a = -3/4 at 1 + t, t, 1 - t and 2 - t, factored: no cancellation.
      const float t = fraction(position);
      const float s = 1.0f - t;
      return {{clamped(first - 1), clamped(first), clamped(first + 1), clamped(first + 2)},
              {-0.75f * t * s * s, (1.25f * t - 2.25f) * t * t + 1.0f, (1.25f * s - 2.25f) * s * s + 1.0f,
               -0.75f * s * t * t}};
    }
  }

  // The weight of input i in an output at a position.
  template <int kTaps>
  VESAL_HOST_DEVICE float weight(const Position& position, int i) const {
    const ResizeTaps<kTaps> t = taps<kTaps>(position);
    float sum = 0.0f;
    for (int k = 0; k < kTaps; ++k) {
      sum += t.index[k] == i ? t.weight[k] : 0.0f;
    }
    return sum;
  }

  // The outputs [begin, end) that read input i, and for cubic a few between them that do not; empty where the
  // axis shrinks and none does.
  struct Range {
    int begin;
    int end;
  };

  template <int kTaps>
  VESAL_HOST_DEVICE Range readers(int i) const {
    if (in == out && step == width && start == 0) {
      return {i, i + 1};
    }
    if (step == 0) {
      return {0, i == 0 ? out : 0};
    }
    // Those whose position is above i - reach and below i + reach; all before for the first voxel, all beyond
    // for the last.
    constexpr int kReach = kTaps / 2;
    const Int low = (i - kReach) * width - (kTaps == 1 ? 1 : 0);
    const Int high = (i + (kTaps == 1 ? 1 : kReach)) * width - 1;
    return {i == 0 ? 0 : first_above(low), i == in - 1 ? out : first_above(high)};
  }

 private:
  // No position is as low as -1.
  VESAL_HOST_DEVICE Position split(Int numerator) const {
    if (numerator < 0) {
      return {-1, numerator + width};
    }
    const Int first = by_width.divide(numerator);
    return {static_cast<int>(first), numerator - first * width};
  }
  VESAL_HOST_DEVICE int clamped(int i) const { return i < 0 ? 0 : (i >= in ? in - 1 : i); }
  VESAL_HOST_DEVICE float fraction(const Position& position) const {
    return static_cast<float>(position.rest) / static_cast<float>(width);
  }
  // The first output with o * step + start > value, at most `out`.
  VESAL_HOST_DEVICE int first_above(Int value) const {
    if (value < start) {
      return 0;
    }
    const Int o = by_step.divide(value - start) + 1;
    return o < out ? static_cast<int>(o) : out;
  }
};

// The axis of `in` voxels with the positions that the parameters ask for.
template <class Int>
ResizeAxis<Int> resize_axis(const ResizeParams& p, int64_t in, int64_t out, double scale) {
  const auto axis = [&](int64_t step, int64_t start, int64_t width) {
    return ResizeAxis<Int>{static_cast<int>(in),
                           static_cast<int>(out),
                           static_cast<Int>(step),
                           static_cast<Int>(start),
                           static_cast<Int>(width),
                           Divider<Int>(static_cast<Int>(std::max<int64_t>(step, 1))),
                           Divider<Int>(static_cast<Int>(width))};
  };
  if (p.align_corners) {
    return axis(out > 1 ? in - 1 : 0, 0, std::max<int64_t>(out - 1, 1));
  }
  int64_t from = in, to = out;
  if (scale > 0) {
    // 1 / scale = from / to, rounded up: a whole source position stays whole or is passed by a trifle. The
    // products above stay below 2^62.
    int exponent = 0;
    std::frexp(1.0 / scale, &exponent);
    const int bits = std::min(45, 46 - exponent);
    to = int64_t{1} << bits;
    from = static_cast<int64_t>(std::ceil(std::ldexp(1.0, bits) / scale));
  }
  switch (p.interpolation) {
    case Interpolation::nearest:
      return axis(from, 0, to);
    case Interpolation::nearest_exact:
      return axis(2 * from, from, 2 * to);
    default:
      return axis(2 * from, from - to, 2 * to);
  }
}

template <class Int>
struct ResizeAxes {
  ResizeAxis<Int> d, h, w;
};

template <class Int>
ResizeAxes<Int> resize_axes(const ResizeParams& p) {
  return {resize_axis<Int>(p, p.d, p.out_d, p.scale[0]), resize_axis<Int>(p, p.h, p.out_h, p.scale[1]),
          resize_axis<Int>(p, p.w, p.out_w, p.scale[2])};
}

// Calls use.operator()<kTaps>().
template <class Use>
void with_resize_taps(Interpolation interpolation, Use&& use) {
  switch (interpolation) {
    case Interpolation::trilinear:
      return use.template operator()<2>();
    case Interpolation::tricubic:
      return use.template operator()<4>();
    default:
      return use.template operator()<1>();
  }
}

}  // namespace vesal::kernels
