// AdamW's constants of one step, worked out once in double.
#pragma once

#include <cmath>

#include "kernels/optimizer/optimizer.hpp"

namespace vesal::kernels {

struct AdamWStep {
  float learning_rate;
  float beta1, one_minus_beta1;
  float beta2, one_minus_beta2;
  float eps;
  float correction1;  // 1 / (1 - beta1^step)
  float correction2;  // 1 / (1 - beta2^step)
  bool l2_decay;
};

inline AdamWStep adamw_constants(const AdamWParams& p) {
  const auto steps = static_cast<double>(p.step);
  return {.learning_rate = p.learning_rate,
          .beta1 = p.beta1,
          .one_minus_beta1 = static_cast<float>(1.0 - static_cast<double>(p.beta1)),
          .beta2 = p.beta2,
          .one_minus_beta2 = static_cast<float>(1.0 - static_cast<double>(p.beta2)),
          .eps = p.eps,
          .correction1 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(p.beta1), steps))),
          .correction2 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(p.beta2), steps))),
          .l2_decay = p.decay == WeightDecay::l2};
}

}  // namespace vesal::kernels
