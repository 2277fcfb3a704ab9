// conv_transpose3d as plain loops, forward and backward written out independently; evaluated in double and in
// float.
#pragma once

#include <algorithm>

#include "kernels/conv_transpose3d/conv_transpose3d.hpp"

namespace vesal::kernels::reference {

// Calls body(input voxel, tap, output voxel) for every pair that meets inside the output.
template <class Body>
void for_each_meeting(const ConvTranspose3dParams& c, Body&& body) {
  int64_t input = 0;
  for (int64_t n = 0; n < c.n; ++n) {
    for (int64_t z = 0; z < c.d; ++z) {
      for (int64_t y = 0; y < c.h; ++y) {
        for (int64_t x = 0; x < c.w; ++x, ++input) {
          for (int64_t t = 0; t < c.taps(); ++t) {
            const int64_t o =
                z * c.stride[0] - c.padding[0] + c.dilation[0] * (t / (c.kernel[1] * c.kernel[2]));
            const int64_t p =
                y * c.stride[1] - c.padding[1] + c.dilation[1] * (t / c.kernel[2] % c.kernel[1]);
            const int64_t q = x * c.stride[2] - c.padding[2] + c.dilation[2] * (t % c.kernel[2]);
            if (o >= 0 && o < c.out_d() && p >= 0 && p < c.out_h() && q >= 0 && q < c.out_w()) {
              body(input, t, ((n * c.out_d() + o) * c.out_h() + p) * c.out_w() + q);
            }
          }
        }
      }
    }
  }
}

// Calls body(input channel, output channel, place in the weights) for the channels that a tap connects.
template <class Body>
void for_each_connection(const ConvTranspose3dParams& c, int64_t tap, Body&& body) {
  const int64_t outputs = c.c_out / c.groups;
  for (int64_t i = 0; i < c.c_in; ++i) {
    for (int64_t k = 0; k < outputs; ++k) {
      body(i, i / (c.c_in / c.groups) * outputs + k, (i * c.taps() + tap) * outputs + k);
    }
  }
}

// bias may be null.
template <class T>
void conv_transpose3d_forward(const ConvTranspose3dParams& c, const T* x, const T* weight, const T* bias,
                              T* y) {
  for (int64_t i = 0; i < c.output_count(); ++i) {
    y[i] = bias != nullptr ? bias[i % c.c_out] : T(0);
  }
  for_each_meeting(c, [&](int64_t input, int64_t tap, int64_t output) {
    for_each_connection(c, tap, [&](int64_t i, int64_t k, int64_t at) {
      y[output * c.c_out + k] += x[input * c.c_in + i] * weight[at];
    });
  });
}

template <class T>
void conv_transpose3d_backward_data(const ConvTranspose3dParams& c, const T* dy, const T* weight, T* dx) {
  std::fill_n(dx, c.input_count(), T(0));
  for_each_meeting(c, [&](int64_t input, int64_t tap, int64_t output) {
    for_each_connection(c, tap, [&](int64_t i, int64_t k, int64_t at) {
      dx[input * c.c_in + i] += dy[output * c.c_out + k] * weight[at];
    });
  });
}

// Overwrites dweight and dbias.
template <class T>
void conv_transpose3d_backward_weight(const ConvTranspose3dParams& c, const T* x, const T* dy, T* dweight,
                                      T* dbias) {
  std::fill_n(dweight, c.weight_count(), T(0));
  std::fill_n(dbias, c.c_out, T(0));
  for (int64_t i = 0; i < c.output_count(); ++i) {
    dbias[i % c.c_out] += dy[i];
  }
  for_each_meeting(c, [&](int64_t input, int64_t tap, int64_t output) {
    for_each_connection(c, tap, [&](int64_t i, int64_t k, int64_t at) {
      dweight[at] += x[input * c.c_in + i] * dy[output * c.c_out + k];
    });
  });
}

}  // namespace vesal::kernels::reference
