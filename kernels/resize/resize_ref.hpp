// Plain references of resizing, in T: the positions straight from PyTorch's formulas.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/resize/resize.hpp"

namespace vesal::kernels::reference {

// Keys' kernel, a = -3/4.
template <class T>
T cubic_weight(T distance) {
  const T a = T(-0.75);
  const T x = std::abs(distance);
  if (x <= 1) {
    return ((a + 2) * x - (a + 3)) * x * x + 1;
  }
  return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : T(0);
}

// The weight of input i in output o along an axis.
template <class T>
T resize_weight(const ResizeParams& p, int64_t in, int64_t out, double scale, int64_t o, int64_t i) {
  if (p.interpolation == Interpolation::nearest || p.interpolation == Interpolation::nearest_exact) {
    const double half = p.interpolation == Interpolation::nearest ? 0.0 : 0.5;
    const double source =
        scale > 0 ? (static_cast<double>(o) + half) / scale
                  : (static_cast<double>(o) + half) * static_cast<double>(in) / static_cast<double>(out);
    return std::min(static_cast<int64_t>(source), in - 1) == i ? T(1) : T(0);
  }
  const T ratio = scale > 0 ? T(1) / T(scale) : T(in) / T(out);
  T source = (T(o) + T(0.5)) * ratio - T(0.5);
  if (p.align_corners) {
    source = out > 1 ? T(o) * (T(in - 1) / T(out - 1)) : T(0);
  }
  if (p.interpolation == Interpolation::trilinear) {
    source = std::max(T(0), source);
    const int64_t first = std::min(static_cast<int64_t>(source), in - 1);
    const int64_t second = std::min(first + 1, in - 1);
    const T fraction = std::min(source - T(first), T(1));
    return (i == first ? 1 - fraction : T(0)) + (i == second ? fraction : T(0));
  }
  const auto first = static_cast<int64_t>(std::floor(source));
  T weight = 0;
  for (int64_t tap = first - 1; tap <= first + 2; ++tap) {
    if (std::clamp<int64_t>(tap, 0, in - 1) == i) {
      weight += cubic_weight(source - T(tap));
    }
  }
  return weight;
}

// Calls body(output element, input element, weight) for all pairs with a weight that is not zero.
template <class T, class Body>
void for_each_resized(const ResizeParams& p, Body&& body) {
  const auto weight = [&](int axis, int64_t in, int64_t out, int64_t o, int64_t i) {
    return resize_weight<T>(p, in, out, p.scale[static_cast<size_t>(axis)], o, i);
  };
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t od = 0; od < p.out_d; ++od)
      for (int64_t d = 0; d < p.d; ++d) {
        const T wd = weight(0, p.d, p.out_d, od, d);
        for (int64_t oh = 0; wd != 0 && oh < p.out_h; ++oh)
          for (int64_t h = 0; h < p.h; ++h) {
            const T wh = weight(1, p.h, p.out_h, oh, h);
            for (int64_t ow = 0; wh != 0 && ow < p.out_w; ++ow)
              for (int64_t w = 0; w < p.w; ++w) {
                const T ww = weight(2, p.w, p.out_w, ow, w);
                for (int64_t c = 0; ww != 0 && c < p.c; ++c) {
                  body((((n * p.out_d + od) * p.out_h + oh) * p.out_w + ow) * p.c + c,
                       (((n * p.d + d) * p.h + h) * p.w + w) * p.c + c, wd * wh * ww);
                }
              }
          }
      }
}

template <class T>
void resize_forward(const ResizeParams& p, const T* x, T* y) {
  std::fill(y, y + p.n * p.out_d * p.out_h * p.out_w * p.c, T(0));
  for_each_resized<T>(p, [&](int64_t out, int64_t in, T weight) { y[out] += weight * x[in]; });
}

template <class T>
void resize_backward(const ResizeParams& p, const T* dy, T* dx) {
  std::fill(dx, dx + p.n * p.d * p.h * p.w * p.c, T(0));
  for_each_resized<T>(p, [&](int64_t out, int64_t in, T weight) { dx[in] += weight * dy[out]; });
}

}  // namespace vesal::kernels::reference
