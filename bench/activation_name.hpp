// Activations under the names that PyTorch gives them.
#pragma once

#include "kernels/context/context.hpp"

namespace vesal::bench {

inline const char* activation_name(kernels::Activation activation) {
  switch (activation) {
    case kernels::Activation::none:
      return "none";
    case kernels::Activation::relu:
      return "relu";
    case kernels::Activation::leaky_relu:
      return "leaky_relu";
    case kernels::Activation::gelu:
      return "gelu";
    case kernels::Activation::gelu_tanh:
      return "gelu_tanh";
    case kernels::Activation::silu:
      return "silu";
    case kernels::Activation::hardswish:
      return "hardswish";
    case kernels::Activation::elu:
      return "elu";
    case kernels::Activation::sigmoid:
      return "sigmoid";
  }
  return "unknown";
}

}  // namespace vesal::bench
