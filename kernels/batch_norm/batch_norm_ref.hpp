// Batch normalisation as plain loops.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/batch_norm/batch_norm.hpp"
#include "kernels/context/activations_ref.hpp"

namespace vesal::kernels::reference {

template <class T>
void batch_norm_forward(const BatchNormParams& p, const T* x, const T* gamma, const T* beta, T* running_mean,
                        T* running_var, T* y, T* mean, T* rstd) {
  const int64_t rows = p.n * p.spatial;
  for (int64_t c = 0; c < p.channels; ++c) {
    if (p.training) {
      T total = 0;
      for (int64_t r = 0; r < rows; ++r) {
        total += x[r * p.channels + c];
      }
      mean[c] = total / T(rows);
      T squares = 0;
      for (int64_t r = 0; r < rows; ++r) {
        const T d = x[r * p.channels + c] - mean[c];
        squares += d * d;
      }
      rstd[c] = T(1) / std::sqrt(squares / T(rows) + T(p.eps));
      if (running_mean) {
        running_mean[c] = (T(1) - T(p.momentum)) * running_mean[c] + T(p.momentum) * mean[c];
        running_var[c] = (T(1) - T(p.momentum)) * running_var[c] + T(p.momentum) * (squares / T(rows - 1));
      }
    } else {
      mean[c] = running_mean[c];
      rstd[c] = T(1) / std::sqrt(running_var[c] + T(p.eps));
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = r * p.channels + c;
      const T z = (x[i] - mean[c]) * rstd[c] * (gamma ? gamma[c] : T(1)) + (beta ? beta[c] : T(0));
      y[i] = activation_value(p.activation, z, T(p.negative_slope));
    }
  }
}

// With xhat = (x - mean) rstd, z = xhat gamma + beta and g = dy activation'(z): in training
// dx = gamma rstd (g - mean(g) - xhat mean(g xhat)), means over the rows; in evaluation dx = gamma rstd g.
template <class T>
void batch_norm_backward(const BatchNormParams& p, const T* x, const T* gamma, const T* beta, const T* mean,
                         const T* rstd, const T* dy, T* dx, T* dgamma, T* dbeta) {
  const int64_t rows = p.n * p.spatial;
  for (int64_t c = 0; c < p.channels; ++c) {
    const T scale = gamma ? gamma[c] : T(1);
    const T shift = beta ? beta[c] : T(0);
    T sum_g = 0;
    T sum_gx = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = r * p.channels + c;
      const T xhat = (x[i] - mean[c]) * rstd[c];
      const T g = dy[i] * activation_derivative(p.activation, xhat * scale + shift, T(p.negative_slope));
      sum_g += g;
      sum_gx += g * xhat;
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = r * p.channels + c;
      const T xhat = (x[i] - mean[c]) * rstd[c];
      const T g = dy[i] * activation_derivative(p.activation, xhat * scale + shift, T(p.negative_slope));
      dx[i] = scale * rstd[c] * (p.training ? g - sum_g / T(rows) - xhat * sum_gx / T(rows) : g);
    }
    if (dgamma) {
      dgamma[c] = sum_gx;
      dbeta[c] = sum_g;
    }
  }
}

}  // namespace vesal::kernels::reference
