// Plain references of resizing, in T: the positions straight from PyTorch's formulas.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/resize/resize.hpp"

namespace vesal::kernels::reference {

// The weight of input i in output o along an axis.
template <class T>
T resize_weight(Interpolation interpolation, int64_t in, int64_t out, int64_t o, int64_t i) {
  if (interpolation == Interpolation::nearest) {
    return o * in / out == i ? T(1) : T(0);
  }
  const T source = std::max(T(0), (T(o) + T(0.5)) * (T(in) / T(out)) - T(0.5));
  const int64_t first = std::min(static_cast<int64_t>(source), in - 1);
  const int64_t second = std::min(first + 1, in - 1);
  const T fraction = std::min(source - T(first), T(1));
  return (i == first ? 1 - fraction : T(0)) + (i == second ? fraction : T(0));
}

// Calls body(output element, input element, weight) for all pairs with a weight that is not zero.
template <class T, class Body>
void for_each_resized(const ResizeParams& p, Body&& body) {
  const auto weight = [&](int64_t in, int64_t out, int64_t o, int64_t i) {
    return resize_weight<T>(p.interpolation, in, out, o, i);
  };
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t od = 0; od < p.out_d; ++od)
      for (int64_t d = 0; d < p.d; ++d) {
        const T wd = weight(p.d, p.out_d, od, d);
        for (int64_t oh = 0; wd != 0 && oh < p.out_h; ++oh)
          for (int64_t h = 0; h < p.h; ++h) {
            const T wh = weight(p.h, p.out_h, oh, h);
            for (int64_t ow = 0; wh != 0 && ow < p.out_w; ++ow)
              for (int64_t w = 0; w < p.w; ++w) {
                const T ww = weight(p.w, p.out_w, ow, w);
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
