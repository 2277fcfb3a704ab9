// AdamW and the gradient norm as plain loops over one flat parameter.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/optimizer/optimizer.hpp"

namespace vesal::kernels::reference {

template <class T>
T gradient_norm(int64_t count, const T* gradient) {
  T total = 0;
  for (int64_t i = 0; i < count; ++i) {
    total += gradient[i] * gradient[i];
  }
  return std::sqrt(total);
}

// One step; `norm` is used when p.max_norm > 0.
template <class T>
void adamw_step(const AdamWParams& p, T norm, T weight_decay, int64_t count, T* parameter, const T* gradient,
                T* m, T* v) {
  const T clip = p.max_norm > 0 ? std::min(T(1), T(p.max_norm) / (norm + T(1e-6))) : T(1);
  const T beta1 = T(p.beta1);
  const T beta2 = T(p.beta2);
  for (int64_t i = 0; i < count; ++i) {
    const T g = clip * gradient[i];
    m[i] = beta1 * m[i] + (T(1) - beta1) * g;
    v[i] = beta2 * v[i] + (T(1) - beta2) * g * g;
    const T m_hat = m[i] / (T(1) - std::pow(beta1, T(p.step)));
    const T v_hat = v[i] / (T(1) - std::pow(beta2, T(p.step)));
    parameter[i] -=
        T(p.learning_rate) * (m_hat / (std::sqrt(v_hat) + T(p.eps)) + weight_decay * parameter[i]);
  }
}

}  // namespace vesal::kernels::reference
