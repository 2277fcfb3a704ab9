// Plain references of the pooling kernels, in T.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/pooling/pooling.hpp"

namespace vesal::kernels::reference {

// What one window covers along an axis, padding included.
struct PoolWindow {
  int64_t begin, end;
  int64_t counted;  // what an average divides by along this axis
};

inline PoolWindow pool_window(const PoolParams& p, size_t axis, int64_t in, int64_t o) {
  if (p.is_adaptive()) {
    const int64_t out = p.adaptive[axis];
    const int64_t begin = o * in / out;
    const int64_t end = begin + ((o + 1) * in - begin * out + out - 1) / out;
    return {begin, end, end - begin};
  }
  const int64_t begin = o * p.stride[axis] - p.padding[axis];
  const int64_t end = begin + p.kernel[axis];
  const int64_t inside = std::min(end, in) - std::max<int64_t>(begin, 0);
  return {begin, end, p.count_include_pad ? std::min(end, in + p.padding[axis]) - begin : inside};
}

// Calls body(output element, input element, number in the window, what its average divides by) for every
// element of every window, in the order of the outputs and of the window.
template <class Body>
void for_each_pooled(const PoolParams& p, Body&& body) {
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t od = 0; od < p.out_d(); ++od)
      for (int64_t oh = 0; oh < p.out_h(); ++oh)
        for (int64_t ow = 0; ow < p.out_w(); ++ow)
          for (int64_t c = 0; c < p.c; ++c) {
            const int64_t out = (((n * p.out_d() + od) * p.out_h() + oh) * p.out_w() + ow) * p.c + c;
            const PoolWindow in_d = pool_window(p, 0, p.d, od), in_h = pool_window(p, 1, p.h, oh),
                             in_w = pool_window(p, 2, p.w, ow);
            const int64_t divisor = in_d.counted * in_h.counted * in_w.counted;
            int64_t number = -1;
            for (int64_t d = in_d.begin; d < in_d.end; ++d)
              for (int64_t h = in_h.begin; h < in_h.end; ++h)
                for (int64_t w = in_w.begin; w < in_w.end; ++w) {
                  ++number;
                  if (d >= 0 && h >= 0 && w >= 0 && d < p.d && h < p.h && w < p.w) {
                    body(out, (((n * p.d + d) * p.h + h) * p.w + w) * p.c + c, number, divisor);
                  }
                }
          }
}

template <class T, class Number>
void max_pool3d_forward(const PoolParams& p, const T* x, T* y, Number* index) {
  int64_t last = -1;
  for_each_pooled(p, [&](int64_t out, int64_t in, int64_t number, int64_t) {
    const bool first = out != last;
    last = out;
    if (first || x[in] > y[out] || (std::isnan(x[in]) && !std::isnan(y[out]))) {
      y[out] = x[in];
      index[out] = static_cast<Number>(number);
    }
  });
}

template <class T, class Number>
void max_pool3d_backward(const PoolParams& p, const T* dy, const Number* index, T* dx) {
  std::fill(dx, dx + p.n * p.d * p.h * p.w * p.c, T(0));
  for_each_pooled(p, [&](int64_t out, int64_t in, int64_t number, int64_t) {
    if (index[out] == number) {
      dx[in] += dy[out];
    }
  });
}

template <class T>
void avg_pool3d_forward(const PoolParams& p, const T* x, T* y) {
  std::fill(y, y + p.n * p.out_d() * p.out_h() * p.out_w() * p.c, T(0));
  for_each_pooled(p,
                  [&](int64_t out, int64_t in, int64_t, int64_t divisor) { y[out] += x[in] / T(divisor); });
}

template <class T>
void avg_pool3d_backward(const PoolParams& p, const T* dy, T* dx) {
  std::fill(dx, dx + p.n * p.d * p.h * p.w * p.c, T(0));
  for_each_pooled(p,
                  [&](int64_t out, int64_t in, int64_t, int64_t divisor) { dx[in] += dy[out] / T(divisor); });
}

}  // namespace vesal::kernels::reference
