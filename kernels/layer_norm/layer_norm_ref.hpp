// Layer normalisation as plain loops.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/context/activations_ref.hpp"
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
      const T z = (in[c] - mean[row]) * rstd[row] * (gamma ? gamma[c] : T(1)) + (beta ? beta[c] : T(0));
      y[row * p.channels + c] = activation_value(p.activation, z, T(p.negative_slope));
    }
  }
}

// With xhat = (x - mean) rstd, z = xhat gamma + beta and g = gamma dy activation'(z):
// dx = rstd (g - mean(g) - xhat mean(g xhat)).
template <class T>
void layer_norm_backward(const LayerNormParams& p, const T* x, const T* gamma, const T* beta, const T* mean,
                         const T* rstd, const T* dy, T* dx, T* dgamma, T* dbeta) {
  const int64_t channels = p.channels;
  for (int64_t c = 0; dgamma && c < channels; ++c) {
    dgamma[c] = T(0);
    dbeta[c] = T(0);
  }
  for (int64_t row = 0; row < p.rows; ++row) {
    // use(i, c, xhat, dz): the gradient before the activation, gamma not yet applied.
    const auto each = [&](auto use) {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t i = row * channels + c;
        const T xhat = (x[i] - mean[row]) * rstd[row];
        const T z = xhat * (gamma ? gamma[c] : T(1)) + (beta ? beta[c] : T(0));
        use(i, c, xhat, dy[i] * activation_derivative(p.activation, z, T(p.negative_slope)));
      }
    };
    T sum_g = 0;
    T sum_gx = 0;
    each([&](int64_t, int64_t c, T xhat, T dz) {
      if (dgamma) {
        dgamma[c] += dz * xhat;
        dbeta[c] += dz;
      }
      const T g = dz * (gamma ? gamma[c] : T(1));
      sum_g += g;
      sum_gx += g * xhat;
    });
    each([&](int64_t i, int64_t c, T xhat, T dz) {
      const T g = dz * (gamma ? gamma[c] : T(1));
      dx[i] = rstd[row] * (g - sum_g / T(channels) - xhat * sum_gx / T(channels));
    });
  }
}

}  // namespace vesal::kernels::reference
