// Plain references of the pooling kernels, in T.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/pooling/pooling.hpp"

namespace vesal::kernels::reference {

// Calls body(output element, input element, number in the window, voxels of the window) for every element of
// every window, in the order of the outputs and of the window.
template <class Body>
void for_each_pooled(const PoolParams& p, Body&& body) {
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t od = 0; od < p.out_d(); ++od)
      for (int64_t oh = 0; oh < p.out_h(); ++oh)
        for (int64_t ow = 0; ow < p.out_w(); ++ow)
          for (int64_t c = 0; c < p.c; ++c) {
            const int64_t out = (((n * p.out_d() + od) * p.out_h() + oh) * p.out_w() + ow) * p.c + c;
            int64_t covered = 0;
            for (const bool counting : {true, false})
              for (int64_t a = 0; a < p.kernel[0]; ++a)
                for (int64_t b = 0; b < p.kernel[1]; ++b)
                  for (int64_t e = 0; e < p.kernel[2]; ++e) {
                    const int64_t d = od * p.stride[0] + a, h = oh * p.stride[1] + b,
                                  w = ow * p.stride[2] + e;
                    if (d >= p.d || h >= p.h || w >= p.w) {
                      continue;
                    }
                    if (counting) {
                      ++covered;
                    } else {
                      body(out, (((n * p.d + d) * p.h + h) * p.w + w) * p.c + c,
                           (a * p.kernel[1] + b) * p.kernel[2] + e, covered);
                    }
                  }
          }
}

template <class T>
void max_pool3d_forward(const PoolParams& p, const T* x, T* y, uint8_t* index) {
  int64_t last = -1;
  for_each_pooled(p, [&](int64_t out, int64_t in, int64_t number, int64_t) {
    const bool first = out != last;
    last = out;
    if (first || x[in] > y[out] || (std::isnan(x[in]) && !std::isnan(y[out]))) {
      y[out] = x[in];
      index[out] = static_cast<uint8_t>(number);
    }
  });
}

template <class T>
void max_pool3d_backward(const PoolParams& p, const T* dy, const uint8_t* index, T* dx) {
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
                  [&](int64_t out, int64_t in, int64_t, int64_t covered) { y[out] += x[in] / T(covered); });
}

template <class T>
void avg_pool3d_backward(const PoolParams& p, const T* dy, T* dx) {
  std::fill(dx, dx + p.n * p.d * p.h * p.w * p.c, T(0));
  for_each_pooled(p,
                  [&](int64_t out, int64_t in, int64_t, int64_t covered) { dx[in] += dy[out] / T(covered); });
}

}  // namespace vesal::kernels::reference
