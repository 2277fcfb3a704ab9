// The element-wise losses as plain loops.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/pointwise_loss/pointwise_loss.hpp"

namespace vesal::kernels::reference {

// sigmoid(x)^gamma * log(1 + e^x): what a logit costs whose target is 0. A target of 1 turns the sign of x.
template <class T>
T focal_cost(T x, T gamma) {
  const T p = T(1) / (T(1) + std::exp(-x));
  return std::pow(p, gamma) * ((x > 0 ? x : T(0)) + std::log1p(std::exp(-std::abs(x))));
}

// Its derivative, from p' = p (1 - p).
template <class T>
T focal_slope(T x, T gamma) {
  const T p = T(1) / (T(1) + std::exp(-x));
  const T softplus = (x > 0 ? x : T(0)) + std::log1p(std::exp(-std::abs(x)));
  return std::pow(p, gamma) * (gamma * (T(1) / (T(1) + std::exp(x))) * softplus + p);
}

template <class T>
T pointwise_cost(const PointwiseLossParams& p, T x, T t, T positive) {
  const T d = x - t;
  switch (p.kind) {
    case PointwiseLoss::l1:
      return std::abs(d);
    case PointwiseLoss::smooth_l1:
      return std::abs(d) < T(p.beta) ? d * d / (T(2) * T(p.beta)) : std::abs(d) - T(p.beta) / T(2);
    case PointwiseLoss::l2:
      return d * d;
    case PointwiseLoss::bce:
      break;
  }
  const T a1 = p.alpha < 0 ? T(1) : T(p.alpha);
  const T a0 = p.alpha < 0 ? T(1) : T(1) - T(p.alpha);
  return positive * a1 * t * focal_cost(-x, T(p.gamma)) + a0 * (T(1) - t) * focal_cost(x, T(p.gamma));
}

template <class T>
T pointwise_slope(const PointwiseLossParams& p, T x, T t, T positive) {
  const T d = x - t;
  const T sign = d > 0 ? T(1) : d < 0 ? T(-1) : T(0);
  switch (p.kind) {
    case PointwiseLoss::l1:
      return sign;
    case PointwiseLoss::smooth_l1:
      return std::abs(d) < T(p.beta) ? d / T(p.beta) : sign;
    case PointwiseLoss::l2:
      return T(2) * d;
    case PointwiseLoss::bce:
      break;
  }
  const T a1 = p.alpha < 0 ? T(1) : T(p.alpha);
  const T a0 = p.alpha < 0 ? T(1) : T(1) - T(p.alpha);
  return a0 * (T(1) - t) * focal_slope(x, T(p.gamma)) - positive * a1 * t * focal_slope(-x, T(p.gamma));
}

// The weights are host pointers here.
template <class T>
T pointwise_weight(const PointwiseLossParams& p, const PointwiseWeights& weights, int64_t i) {
  return (weights.elements ? T(weights.elements[i]) : T(1)) *
         (weights.channels ? T(weights.channels[i % p.channels]) : T(1));
}

template <class T>
T pointwise_loss_forward(const PointwiseLossParams& p, const T* x, const T* target,
                         const PointwiseWeights& weights) {
  const int64_t count = p.rows * p.channels;
  T total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T positive = weights.positive ? T(weights.positive[i % p.channels]) : T(1);
    total += pointwise_weight<T>(p, weights, i) * pointwise_cost(p, x[i], target[i], positive);
  }
  return count == 0 ? T(0) : total / T(count);
}

template <class T>
void pointwise_loss_backward(const PointwiseLossParams& p, const T* x, const T* target,
                             const PointwiseWeights& weights, T weight, T* dx) {
  const int64_t count = p.rows * p.channels;
  for (int64_t i = 0; i < count; ++i) {
    const T positive = weights.positive ? T(weights.positive[i % p.channels]) : T(1);
    dx[i] = weight / T(count) * pointwise_weight<T>(p, weights, i) *
            pointwise_slope(p, x[i], target[i], positive);
  }
}

}  // namespace vesal::kernels::reference
