// Instance normalisation as plain loops.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/instance_norm/instance_norm.hpp"

namespace vesal::kernels::reference {

// The slope of the activation at z.
template <class T>
T activation_slope(const InstanceNormParams& p, T z) {
  if (p.activation == Activation::none || z > 0) {
    return T(1);
  }
  return p.activation == Activation::relu ? T(0) : T(p.negative_slope);
}

template <class T>
void instance_norm_forward(const InstanceNormParams& p, const T* x, const T* gamma, const T* beta, T* y,
                           T* mean, T* rstd) {
  for (int64_t s = 0; s < p.n; ++s) {
    for (int64_t c = 0; c < p.channels; ++c) {
      const int64_t k = s * p.channels + c;
      T total = 0;
      for (int64_t l = 0; l < p.spatial; ++l) {
        total += x[(s * p.spatial + l) * p.channels + c];
      }
      mean[k] = total / T(p.spatial);
      T squares = 0;
      for (int64_t l = 0; l < p.spatial; ++l) {
        const T d = x[(s * p.spatial + l) * p.channels + c] - mean[k];
        squares += d * d;
      }
      rstd[k] = T(1) / std::sqrt(squares / T(p.spatial) + T(p.eps));
      for (int64_t l = 0; l < p.spatial; ++l) {
        const int64_t i = (s * p.spatial + l) * p.channels + c;
        const T z = (x[i] - mean[k]) * rstd[k] * (gamma ? gamma[c] : T(1)) + (beta ? beta[c] : T(0));
        y[i] = activation_slope(p, z) * z;
      }
    }
  }
}

// With xhat = (x - mean) rstd, z = xhat gamma + beta and g = dy activation'(z):
// dx = gamma rstd (g - mean(g) - xhat mean(g xhat)), means over the voxels of a channel.
template <class T>
void instance_norm_backward(const InstanceNormParams& p, const T* x, const T* gamma, const T* beta,
                            const T* mean, const T* rstd, const T* dy, T* dx, T* dgamma, T* dbeta) {
  for (int64_t c = 0; c < p.channels; ++c) {
    const T scale = gamma ? gamma[c] : T(1);
    const T shift = beta ? beta[c] : T(0);
    T sum_gamma = 0;
    T sum_beta = 0;
    for (int64_t s = 0; s < p.n; ++s) {
      const int64_t k = s * p.channels + c;
      T sum_g = 0;
      T sum_gx = 0;
      for (int64_t l = 0; l < p.spatial; ++l) {
        const int64_t i = (s * p.spatial + l) * p.channels + c;
        const T xhat = (x[i] - mean[k]) * rstd[k];
        const T g = dy[i] * activation_slope(p, xhat * scale + shift);
        sum_g += g;
        sum_gx += g * xhat;
      }
      sum_gamma += sum_gx;
      sum_beta += sum_g;
      for (int64_t l = 0; l < p.spatial; ++l) {
        const int64_t i = (s * p.spatial + l) * p.channels + c;
        const T xhat = (x[i] - mean[k]) * rstd[k];
        const T g = dy[i] * activation_slope(p, xhat * scale + shift);
        dx[i] = scale * rstd[k] * (g - sum_g / T(p.spatial) - xhat * sum_gx / T(p.spatial));
      }
    }
    if (dgamma) {
      dgamma[c] = sum_gamma;
      dbeta[c] = sum_beta;
    }
  }
}

}  // namespace vesal::kernels::reference
