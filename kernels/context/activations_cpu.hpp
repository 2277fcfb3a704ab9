// Activations and their gradients as branch-free expressions that vectorise inside a loop; for CPU kernels.
// Definitions: context.hpp.
#pragma once

#include "kernels/context/context.hpp"
#include "kernels/vector_math.hpp"

namespace vesal::kernels::cpu {

template <Activation kActivation>
inline float activated(float x, float slope) {
  if constexpr (kActivation == Activation::relu) {
    return x <= 0.0f ? 0.0f : x;
  } else if constexpr (kActivation == Activation::leaky_relu) {
    return x * (x > 0.0f ? 1.0f : slope);
  } else if constexpr (kActivation == Activation::gelu) {
    return 0.5f * x * (1.0f + vector_erf(x * 0.707106781f));
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    // (1 + tanh(u)) / 2 is the sigmoid of 2 u, which cancels nothing where tanh is near -1.
    return x * vector_sigmoid(x * __builtin_fmaf(0.0713548163f * x, x, 1.59576912f));
  } else if constexpr (kActivation == Activation::silu) {
    return x * vector_sigmoid(x);
  } else if constexpr (kActivation == Activation::hardswish) {
    const float above = x + 3.0f < 0.0f ? 0.0f : x + 3.0f;
    return x * ((above > 6.0f ? 6.0f : above) * 0.166666667f);
  } else if constexpr (kActivation == Activation::elu) {
    return x > 0.0f ? x : vector_expm1_below(x);
  } else if constexpr (kActivation == Activation::sigmoid) {
    return vector_sigmoid(x);
  } else {
    return x;
  }
}

// dy times the activation's slope at x.
template <Activation kActivation>
inline float activation_gradient(float x, float dy, float slope) {
  if constexpr (kActivation == Activation::relu) {
    return x > 0.0f ? dy : 0.0f;
  } else if constexpr (kActivation == Activation::leaky_relu) {
    return dy * (x > 0.0f ? 1.0f : slope);
  } else if constexpr (kActivation == Activation::gelu) {
    const float density = 0.398942280f * vector_exp(-0.5f * x * x);
    return dy * __builtin_fmaf(x, density, 0.5f * (1.0f + vector_erf(x * 0.707106781f)));
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    // Beyond 12 the slope is 0 or 1, but x^2 might overflow.
    const float below = x > 12.0f ? 12.0f : x;
    const float near = below < -12.0f ? -12.0f : below;
    const float cubic = 0.0713548163f * near * near;
    const float u = near * (cubic + 1.59576912f);
    const float e = vector_exp(u < 0.0f ? u : -u);
    const float s = (u < 0.0f ? e : 1.0f) / (1.0f + e);
    const float complement = (u < 0.0f ? 1.0f : e) / (1.0f + e);  // 1 - s without cancellation
    return dy * (s * __builtin_fmaf(near * complement, __builtin_fmaf(3.0f, cubic, 1.59576912f), 1.0f));
  } else if constexpr (kActivation == Activation::silu) {
    const float e = vector_exp(x < 0.0f ? x : -x);
    const float s = (x < 0.0f ? e : 1.0f) / (1.0f + e);
    const float complement = (x < 0.0f ? 1.0f : e) / (1.0f + e);  // 1 - s without cancellation
    return dy * (s * __builtin_fmaf(x, complement, 1.0f));
  } else if constexpr (kActivation == Activation::hardswish) {
    const float inside = dy * __builtin_fmaf(x, 0.333333333f, 0.5f);
    const float below = x < -3.0f ? 0.0f : inside;
    return x > 3.0f ? dy : below;
  } else if constexpr (kActivation == Activation::elu) {
    return dy * vector_exp(x > 0.0f ? 0.0f : x);
  } else if constexpr (kActivation == Activation::sigmoid) {
    const float e = vector_exp(x < 0.0f ? x : -x);
    const float one_plus_e = 1.0f + e;
    return dy * (e / (one_plus_e * one_plus_e));
  } else {
    return dy;
  }
}

}  // namespace vesal::kernels::cpu
