// Activations and their gradients in the portable kernel dialect; for .cu files. Definitions: context.hpp.
#pragma once

#include "kernels/context/context.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {

// The sigmoid of u and what it leaves to 1, both without cancellation, for one division.
struct Sigmoid {
  float value, complement;
};

VESAL_DEVICE inline Sigmoid sigmoid_of(float u) {
  const float e = expf(-fabsf(u));
  const float large = 1.0f / (1.0f + e);
  const float small = e * large;
  return {u < 0.0f ? small : large, u < 0.0f ? large : small};
}

template <Activation kActivation>
VESAL_DEVICE float activated(float x, float slope) {
  if constexpr (kActivation == Activation::relu) {
    return x <= 0.0f ? 0.0f : x;
  } else if constexpr (kActivation == Activation::leaky_relu) {
    return x > 0.0f ? x : slope * x;
  } else if constexpr (kActivation == Activation::gelu) {
    return 0.5f * x * (1.0f + erff(x * 0.707106781f));
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    // (1 + tanh(u)) / 2 is the sigmoid of 2 u, which cancels nothing where tanh is near -1.
    return x * sigmoid_of(x * fmaf(0.0713548163f * x, x, 1.59576912f)).value;
  } else if constexpr (kActivation == Activation::silu) {
    return x * sigmoid_of(x).value;
  } else if constexpr (kActivation == Activation::hardswish) {
    return x * (fminf(fmaxf(x + 3.0f, 0.0f), 6.0f) * 0.166666667f);
  } else if constexpr (kActivation == Activation::elu) {
    return x > 0.0f ? x : expm1f(x);
  } else if constexpr (kActivation == Activation::sigmoid) {
    return sigmoid_of(x).value;
  } else {
    return x;
  }
}

// dy times the activation's slope at x.
template <Activation kActivation>
VESAL_DEVICE float activation_gradient(float x, float dy, float slope) {
  if constexpr (kActivation == Activation::relu) {
    return x > 0.0f ? dy : 0.0f;
  } else if constexpr (kActivation == Activation::leaky_relu) {
    return x > 0.0f ? dy : slope * dy;
  } else if constexpr (kActivation == Activation::gelu) {
    return dy * fmaf(x, 0.398942280f * expf(-0.5f * x * x), 0.5f * (1.0f + erff(x * 0.707106781f)));
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    // Beyond 12 the slope is 0 or 1, but x^2 might overflow.
    const float near = x > 12.0f ? 12.0f : (x < -12.0f ? -12.0f : x);
    const float cubic = 0.0713548163f * near * near;
    const Sigmoid s = sigmoid_of(near * (cubic + 1.59576912f));
    return dy * (s.value * fmaf(near * s.complement, fmaf(3.0f, cubic, 1.59576912f), 1.0f));
  } else if constexpr (kActivation == Activation::silu) {
    const Sigmoid s = sigmoid_of(x);
    return dy * (s.value * fmaf(x, s.complement, 1.0f));
  } else if constexpr (kActivation == Activation::hardswish) {
    return x < -3.0f ? 0.0f : (x <= 3.0f ? dy * fmaf(x, 0.333333333f, 0.5f) : dy);
  } else if constexpr (kActivation == Activation::elu) {
    return x > 0.0f ? dy : dy * expf(x);
  } else if constexpr (kActivation == Activation::sigmoid) {
    const Sigmoid s = sigmoid_of(x);
    return dy * (s.value * s.complement);
  } else {
    return dy;
  }
}

}  // namespace vesal::kernels::VESAL_BACKEND
