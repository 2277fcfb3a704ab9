// From an Activation to code for it: the choice among kernels that were compiled with one each.
#pragma once

#include <type_traits>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

template <Activation... kChoices>
struct Activations {
  static bool contain(Activation activation) { return ((activation == kChoices) || ...); }
  // use(std::integral_constant<Activation, activation>) where it is one of the choices, else nothing.
  template <class Use>
  static void choose(Activation activation, Use&& use) {
    static_cast<void>(
        ((activation == kChoices && (use(std::integral_constant<Activation, kChoices>{}), true)) || ...));
  }
};

using AllActivations =
    Activations<Activation::relu, Activation::leaky_relu, Activation::gelu, Activation::gelu_tanh,
                Activation::silu, Activation::hardswish, Activation::elu, Activation::sigmoid>;

// What a normalisation may end with.
using NormActivations = Activations<Activation::none, Activation::relu, Activation::leaky_relu,
                                    Activation::gelu, Activation::silu, Activation::elu>;

}  // namespace vesal::kernels
