// conv3d as plain loops, forward and backward written out independently; evaluated in double (exact) and in
// float.
#pragma once

#include <algorithm>

#include "kernels/conv3d/conv3d.hpp"

namespace vesal::kernels::reference {

// Calls body(output voxel, output position o, p, q, batch) for every output voxel in order.
template <class Body>
void for_each_output(const Conv3dParams& c, Body&& body) {
  int64_t voxel = 0;
  for (int64_t n = 0; n < c.n; ++n) {
    for (int64_t o = 0; o < c.out_d(); ++o) {
      for (int64_t p = 0; p < c.out_h(); ++p) {
        for (int64_t q = 0; q < c.out_w(); ++q) {
          body(voxel++, n, o, p, q);
        }
      }
    }
  }
}

// Calls body(tap, input voxel) for the taps of output (o, p, q) that lie inside the volume.
template <class Body>
void for_each_tap(const Conv3dParams& c, int64_t n, int64_t o, int64_t p, int64_t q, Body&& body) {
  for (int64_t t = 0; t < c.taps(); ++t) {
    const int64_t z = o * c.stride[0] - c.padding[0] + c.dilation[0] * (t / (c.kernel[1] * c.kernel[2]));
    const int64_t y = p * c.stride[1] - c.padding[1] + c.dilation[1] * (t / c.kernel[2] % c.kernel[1]);
    const int64_t x = q * c.stride[2] - c.padding[2] + c.dilation[2] * (t % c.kernel[2]);
    if (z >= 0 && z < c.d && y >= 0 && y < c.h && x >= 0 && x < c.w) {
      body(t, ((n * c.d + z) * c.h + y) * c.w + x);
    }
  }
}

// Calls body(input channel, place in the weights) for the input channels that output k reads through a tap.
template <class Body>
void for_each_weight(const Conv3dParams& c, int64_t k, int64_t tap, Body&& body) {
  const int64_t first = k / (c.c_out / c.groups) * (c.c_in / c.groups);
  for (int64_t i = 0; i < c.c_in / c.groups; ++i) {
    body(first + i, (k * c.taps() + tap) * (c.c_in / c.groups) + i);
  }
}

// bias may be null.
template <class T>
void conv3d_forward(const Conv3dParams& c, const T* x, const T* weight, const T* bias, T* y) {
  for_each_output(c, [&](int64_t voxel, int64_t n, int64_t o, int64_t p, int64_t q) {
    for (int64_t k = 0; k < c.c_out; ++k) {
      T sum = bias != nullptr ? bias[k] : T(0);
      for_each_tap(c, n, o, p, q, [&](int64_t tap, int64_t source) {
        for_each_weight(c, k, tap,
                        [&](int64_t i, int64_t at) { sum += x[source * c.c_in + i] * weight[at]; });
      });
      y[voxel * c.c_out + k] = sum;
    }
  });
}

template <class T>
void conv3d_backward_data(const Conv3dParams& c, const T* dy, const T* weight, T* dx) {
  std::fill_n(dx, c.input_count(), T(0));
  for_each_output(c, [&](int64_t voxel, int64_t n, int64_t o, int64_t p, int64_t q) {
    for_each_tap(c, n, o, p, q, [&](int64_t tap, int64_t source) {
      for (int64_t k = 0; k < c.c_out; ++k) {
        for_each_weight(c, k, tap, [&](int64_t i, int64_t at) {
          dx[source * c.c_in + i] += dy[voxel * c.c_out + k] * weight[at];
        });
      }
    });
  });
}

// Overwrites dweight and dbias.
template <class T>
void conv3d_backward_weight(const Conv3dParams& c, const T* x, const T* dy, T* dweight, T* dbias) {
  std::fill_n(dweight, c.weight_count(), T(0));
  std::fill_n(dbias, c.c_out, T(0));
  for_each_output(c, [&](int64_t voxel, int64_t n, int64_t o, int64_t p, int64_t q) {
    for (int64_t k = 0; k < c.c_out; ++k) {
      dbias[k] += dy[voxel * c.c_out + k];
    }
    for_each_tap(c, n, o, p, q, [&](int64_t tap, int64_t source) {
      for (int64_t k = 0; k < c.c_out; ++k) {
        for_each_weight(c, k, tap, [&](int64_t i, int64_t at) {
          dweight[at] += dy[voxel * c.c_out + k] * x[source * c.c_in + i];
        });
      }
    });
  });
}

}  // namespace vesal::kernels::reference
