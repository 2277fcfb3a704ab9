// Layer normalisation as plain loops.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/layer_norm/layer_norm.hpp"

namespace vesal::kernels::reference {

template <class T>
void layer_norm_forward(const LayerNormParams& p, const T* x, const T* gamma, const T* beta, T* y, T* mean,
                        T* rstd) {
  for (int64_t row = 0; row < p.rows; ++row) {
    const T* in = x + row * p.channels;
    T total = 0;
    for (int64_t c = 0; c < p.channels; ++c) {
      total += in[c];
    }
    mean[row] = total / T(p.channels);
    T squares = 0;
    for (int64_t c = 0; c < p.channels; ++c) {
      squares += (in[c] - mean[row]) * (in[c] - mean[row]);
    }
    rstd[row] = T(1) / std::sqrt(squares / T(p.channels) + T(p.eps));
    for (int64_t c = 0; c < p.channels; ++c) {
      y[row * p.channels + c] = (in[c] - mean[row]) * rstd[row] * gamma[c] + beta[c];
    }
  }
}

// With xhat = (x - mean) rstd and g = dy gamma: dx = rstd (g - mean(g) - xhat mean(g xhat)).
template <class T>
void layer_norm_backward(const LayerNormParams& p, const T* x, const T* gamma, const T* mean, const T* rstd,
                         const T* dy, T* dx, T* dgamma, T* dbeta) {
  const int64_t channels = p.channels;
  for (int64_t c = 0; c < channels; ++c) {
    dgamma[c] = T(0);
    dbeta[c] = T(0);
  }
  for (int64_t row = 0; row < p.rows; ++row) {
    T sum_g = 0;
    T sum_gx = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const T xhat = (x[row * channels + c] - mean[row]) * rstd[row];
      const T d = dy[row * channels + c];
      dgamma[c] += d * xhat;
      dbeta[c] += d;
      sum_g += d * gamma[c];
      sum_gx += d * gamma[c] * xhat;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const T xhat = (x[row * channels + c] - mean[row]) * rstd[row];
      dx[row * channels + c] =
          rstd[row] * (dy[row * channels + c] * gamma[c] - sum_g / T(channels) - xhat * sum_gx / T(channels));
    }
  }
}

}  // namespace vesal::kernels::reference
