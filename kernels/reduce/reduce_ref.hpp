// Reductions as plain loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace vesal::kernels::reference {

template <class T>
T sum(int64_t count, const T* x) {
  T total = 0;
  for (int64_t i = 0; i < count; ++i) {
    total += x[i];
  }
  return total;
}

template <class T>
T sum_squares(int64_t count, const T* x) {
  T total = 0;
  for (int64_t i = 0; i < count; ++i) {
    total += x[i] * x[i];
  }
  return total;
}

template <class T>
T max_abs(int64_t count, const T* x) {
  T largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(x[i])) {
      return x[i];
    }
    largest = std::max(largest, std::abs(x[i]));
  }
  return largest;
}

template <class T>
void channel_sum_forward(int64_t rows, int64_t channels, const T* x, T* out) {
  for (int64_t row = 0; row < rows; ++row) {
    out[row] = sum(channels, x + row * channels);
  }
}

template <class T>
void channel_sum_backward(int64_t rows, int64_t channels, const T* dout, T* dx) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; ++c) {
      dx[row * channels + c] = dout[row];
    }
  }
}

template <class T>
void sum_spatial(int64_t n, int64_t spatial, int64_t channels, T factor, const T* x, T* out) {
  for (int64_t s = 0; s < n; ++s) {
    for (int64_t c = 0; c < channels; ++c) {
      T total = 0;
      for (int64_t l = 0; l < spatial; ++l) {
        total += x[(s * spatial + l) * channels + c];
      }
      out[s * channels + c] = factor * total;
    }
  }
}

}  // namespace vesal::kernels::reference
