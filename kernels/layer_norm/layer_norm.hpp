// Layer normalisation over the last axis (Ba, Kiros, Hinton 2016): y = (x - mean) * rstd * gamma + beta,
// with mean and the biased variance of each row and rstd = 1 / sqrt(variance + eps).
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

struct LayerNormParams {
  int64_t rows = 1;      // >= 0
  int64_t channels = 1;  // >= 1
  float eps = 1e-5f;
};

// x, y [rows, channels]; gamma, beta [channels]; mean, rstd [rows], or null when no backward pass follows.
// The variance is computed from centred values, not as E[x^2] - E[x]^2.
void layer_norm_forward(Context& context, const LayerNormParams& params, ConstData x, ConstData gamma,
                        ConstData beta, Data y, float* mean, float* rstd);

size_t layer_norm_backward_workspace_bytes(Context& context, const LayerNormParams& params);

// dx is overwritten; dgamma and dbeta follow `mode`.
void layer_norm_backward(Context& context, const LayerNormParams& params, ConstData x, ConstData gamma,
                         const float* mean, const float* rstd, ConstData dy, Data dx, Data dgamma, Data dbeta,
                         GradMode mode, Workspace workspace);

}  // namespace vesal::kernels
