// Softmax as plain loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace vesal::kernels::reference {

template <class T>
void softmax_forward(int64_t rows, int64_t channels, const T* x, T* y) {
  for (int64_t row = 0; row < rows; ++row) {
    const T* in = x + row * channels;
    T* out = y + row * channels;
    const T largest = *std::max_element(in, in + channels);
    T total = 0;
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = std::exp(in[c] - largest);
      total += out[c];
    }
    for (int64_t c = 0; c < channels; ++c) {
      out[c] /= total;
    }
  }
}

// dx_i = sum_j dy_j d y_j / d x_i with the Jacobian y_j (delta_ij - y_i) written out.
template <class T>
void softmax_backward(int64_t rows, int64_t channels, const T* y, const T* dy, T* dx) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < channels; ++i) {
      T total = 0;
      for (int64_t j = 0; j < channels; ++j) {
        total +=
            dy[row * channels + j] * y[row * channels + j] * ((i == j ? T(1) : T(0)) - y[row * channels + i]);
      }
      dx[row * channels + i] = total;
    }
  }
}

}  // namespace vesal::kernels::reference
