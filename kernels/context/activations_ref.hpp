// Activations as a reader would write them down.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/context/context.hpp"

namespace vesal::kernels::reference {

template <class T>
T activation_value(Activation kind, T x, T slope) {
  switch (kind) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x > 0 ? x : T(0);
    case Activation::leaky_relu:
      return x > 0 ? x : slope * x;
    case Activation::gelu:
      return x * T(0.5) * (T(1) + std::erf(x / std::sqrt(T(2))));
    case Activation::gelu_tanh: {
      const T k = std::sqrt(T(2) / T(3.14159265358979323846));
      return x * T(0.5) * (T(1) + std::tanh(k * (x + T(0.044715) * x * x * x)));
    }
    case Activation::silu:
      return x / (T(1) + std::exp(-x));
    case Activation::hardswish:
      return x * std::min(std::max(x + T(3), T(0)), T(6)) / T(6);
    case Activation::elu:
      return x > 0 ? x : std::expm1(x);
    case Activation::sigmoid:
      return T(1) / (T(1) + std::exp(-x));
  }
  return T(0);
}

// The slope at x.
template <class T>
T activation_derivative(Activation kind, T x, T slope) {
  const T pi = T(3.14159265358979323846);
  switch (kind) {
    case Activation::none:
      return T(1);
    case Activation::relu:
      return x > 0 ? T(1) : T(0);
    case Activation::leaky_relu:
      return x > 0 ? T(1) : slope;
    case Activation::gelu: {
      const T cumulative = T(0.5) * (T(1) + std::erf(x / std::sqrt(T(2))));
      const T density = std::exp(-x * x / T(2)) / std::sqrt(T(2) * pi);
      return cumulative + x * density;
    }
    case Activation::gelu_tanh: {
      const T k = std::sqrt(T(2) / pi);
      const T t = std::tanh(k * (x + T(0.044715) * x * x * x));
      return T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * k * (T(1) + T(3) * T(0.044715) * x * x);
    }
    case Activation::silu: {
      const T s = T(1) / (T(1) + std::exp(-x));
      return s * (T(1) + x * (T(1) - s));
    }
    case Activation::hardswish:
      return x < -3 ? T(0) : (x <= 3 ? x / T(3) + T(0.5) : T(1));
    case Activation::elu:
      return x > 0 ? T(1) : std::exp(x);
    case Activation::sigmoid: {
      const T s = T(1) / (T(1) + std::exp(-x));
      return s * (T(1) - s);
    }
  }
  return T(0);
}

}  // namespace vesal::kernels::reference
