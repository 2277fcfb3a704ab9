// The optimisers, the moving average and the gradient norm as plain loops over one flat parameter.
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

template <class T>
T clip_factor(float max_norm, T norm) {
  return max_norm > 0 ? std::min(T(1), T(max_norm) / (norm + T(1e-6))) : T(1);
}

// One step; `norm` is used when p.max_norm > 0, `largest` is null without AMSGrad.
template <class T>
void adamw_step(const AdamWParams& p, T norm, T weight_decay, int64_t count, T* parameter, const T* gradient,
                T* m, T* v, T* largest = nullptr) {
  const T clip = clip_factor(p.max_norm, norm);
  const T beta1 = T(p.beta1);
  const T beta2 = T(p.beta2);
  const bool l2 = p.decay == WeightDecay::l2;
  for (int64_t i = 0; i < count; ++i) {
    T g = clip * gradient[i];
    if (l2) {
      g += weight_decay * parameter[i];
    }
    m[i] = beta1 * m[i] + (T(1) - beta1) * g;
    v[i] = beta2 * v[i] + (T(1) - beta2) * g * g;
    if (largest != nullptr) {
      largest[i] = std::max(largest[i], v[i]);
    }
    const T m_hat = m[i] / (T(1) - std::pow(beta1, T(p.step)));
    const T v_hat = (largest != nullptr ? largest[i] : v[i]) / (T(1) - std::pow(beta2, T(p.step)));
    const T decay = l2 ? T(0) : weight_decay * parameter[i];
    parameter[i] -= T(p.learning_rate) * (m_hat / (std::sqrt(v_hat) + T(p.eps)) + decay);
  }
}

template <class T>
void sgd_step(const SgdParams& p, T norm, T weight_decay, int64_t count, T* parameter, const T* gradient,
              T* m) {
  const T clip = clip_factor(p.max_norm, norm);
  for (int64_t i = 0; i < count; ++i) {
    const T g = clip * gradient[i] + weight_decay * parameter[i];
    T step = g;
    if (p.momentum > 0) {
      m[i] = T(p.momentum) * m[i] + g;
      step = p.nesterov ? g + T(p.momentum) * m[i] : m[i];
    }
    parameter[i] -= T(p.learning_rate) * step;
  }
}

template <class T>
void ema_step(float decay, int64_t count, const T* parameter, T* average) {
  for (int64_t i = 0; i < count; ++i) {
    average[i] = T(decay) * average[i] + (T(1) - T(decay)) * parameter[i];
  }
}

}  // namespace vesal::kernels::reference
