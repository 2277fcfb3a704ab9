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
    const int64_t z = o * c.stride[0] - c.padding[0] + t / (c.kernel[1] * c.kernel[2]);
    const int64_t y = p * c.stride[1] - c.padding[1] + t / c.kernel[2] % c.kernel[1];
    const int64_t x = q * c.stride[2] - c.padding[2] + t % c.kernel[2];
    if (z >= 0 && z < c.d && y >= 0 && y < c.h && x >= 0 && x < c.w) {
      body(t, ((n * c.d + z) * c.h + y) * c.w + x);
    }
  }
}

// bias may be null.
template <class T>
void conv3d_forward(const Conv3dParams& c, const T* x, const T* weight, const T* bias, T* y) {
  for_each_output(c, [&](int64_t voxel, int64_t n, int64_t o, int64_t p, int64_t q) {
    for (int64_t k = 0; k < c.c_out; ++k) {
      T sum = bias != nullptr ? bias[k] : T(0);
      for_each_tap(c, n, o, p, q, [&](int64_t tap, int64_t source) {
        for (int64_t i = 0; i < c.c_in; ++i) {
          sum += x[source * c.c_in + i] * weight[(k * c.taps() + tap) * c.c_in + i];
        }
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
        for (int64_t i = 0; i < c.c_in; ++i) {
          dx[source * c.c_in + i] += dy[voxel * c.c_out + k] * weight[(k * c.taps() + tap) * c.c_in + i];
        }
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
        for (int64_t i = 0; i < c.c_in; ++i) {
          dweight[(k * c.taps() + tap) * c.c_in + i] += dy[voxel * c.c_out + k] * x[source * c.c_in + i];
        }
      }
    });
  });
}

}  // namespace vesal::kernels::reference
