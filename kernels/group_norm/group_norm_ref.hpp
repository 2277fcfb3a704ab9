// Group normalisation as plain loops.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/context/activations_ref.hpp"
#include "kernels/group_norm/group_norm.hpp"

namespace vesal::kernels::reference {

template <class T>
void group_norm_forward(const GroupNormParams& p, const T* x, const T* gamma, const T* beta, T* y, T* mean,
                        T* rstd) {
  const int64_t size = p.channels / p.groups;
  const T elements = T(p.spatial * size);
  for (int64_t s = 0; s < p.n; ++s) {
    for (int64_t g = 0; g < p.groups; ++g) {
      const int64_t k = s * p.groups + g;
      const auto each = [&](auto use) {
        for (int64_t l = 0; l < p.spatial; ++l) {
          for (int64_t c = g * size; c < (g + 1) * size; ++c) {
            use((s * p.spatial + l) * p.channels + c, c);
          }
        }
      };
      T total = 0;
      each([&](int64_t i, int64_t) { total += x[i]; });
      mean[k] = total / elements;
      T squares = 0;
      each([&](int64_t i, int64_t) { squares += (x[i] - mean[k]) * (x[i] - mean[k]); });
      rstd[k] = T(1) / std::sqrt(squares / elements + T(p.eps));
      each([&](int64_t i, int64_t c) {
        const T z = (x[i] - mean[k]) * rstd[k] * (gamma ? gamma[c] : T(1)) + (beta ? beta[c] : T(0));
        y[i] = activation_value(p.activation, z, T(p.negative_slope));
      });
    }
  }
}

// With xhat = (x - mean) rstd, z = xhat gamma + beta and g = gamma dy activation'(z):
// dx = rstd (g - mean(g) - xhat mean(g xhat)), means over the group's voxels and channels.
template <class T>
void group_norm_backward(const GroupNormParams& p, const T* x, const T* gamma, const T* beta, const T* mean,
                         const T* rstd, const T* dy, T* dx, T* dgamma, T* dbeta) {
  const int64_t size = p.channels / p.groups;
  const T elements = T(p.spatial * size);
  for (int64_t c = 0; dgamma && c < p.channels; ++c) {
    dgamma[c] = T(0);
    dbeta[c] = T(0);
  }
  for (int64_t s = 0; s < p.n; ++s) {
    for (int64_t group = 0; group < p.groups; ++group) {
      const int64_t k = s * p.groups + group;
      // use(i, c, xhat, dz): the gradient before the activation, gamma not yet applied.
      const auto each = [&](auto use) {
        for (int64_t l = 0; l < p.spatial; ++l) {
          for (int64_t c = group * size; c < (group + 1) * size; ++c) {
            const int64_t i = (s * p.spatial + l) * p.channels + c;
            const T xhat = (x[i] - mean[k]) * rstd[k];
            const T z = xhat * (gamma ? gamma[c] : T(1)) + (beta ? beta[c] : T(0));
            use(i, c, xhat, dy[i] * activation_derivative(p.activation, z, T(p.negative_slope)));
          }
        }
      };
      T sum_g = 0;
      T sum_gx = 0;
      each([&](int64_t, int64_t c, T xhat, T dz) {
        const T g = dz * (gamma ? gamma[c] : T(1));
        sum_g += g;
        sum_gx += g * xhat;
        if (dgamma) {
          dgamma[c] += dz * xhat;
          dbeta[c] += dz;
        }
      });
      each([&](int64_t i, int64_t c, T xhat, T dz) {
        const T g = dz * (gamma ? gamma[c] : T(1));
        dx[i] = rstd[k] * (g - sum_g / elements - xhat * sum_gx / elements);
      });
    }
  }
}

}  // namespace vesal::kernels::reference
