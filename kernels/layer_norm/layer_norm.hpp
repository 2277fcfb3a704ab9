// Layer normalisation over the last axis (Ba, Kiros, Hinton 2016), of tokens or of the channels of every
// voxel, then activated:
//   y = activation((x - mean) * rstd * gamma + beta),   rstd = 1 / sqrt(variance + eps)
// with mean and the biased variance of each row.
// x, y, dy and dx are stored as float32, bf16 or f16 (kernels/context/storage.hpp); all else is float32.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

struct LayerNormParams {
  int64_t rows = 1;      // >= 0
  int64_t channels = 1;  // >= 1
  float eps = 1e-5f;
  Activation activation = Activation::none;  // none, relu, leaky_relu, gelu, silu or elu
  float negative_slope = 0.01f;              // of leaky_relu
};

// x, y [rows, channels]; gamma, beta [channels], both null for no affine map; mean, rstd [rows], or null when
// no backward pass follows.
// The variance is computed from centred values, not as E[x^2] - E[x]^2.
void layer_norm_forward(Context& context, const LayerNormParams& params, ConstData x, ConstData gamma,
                        ConstData beta, Data y, float* mean, float* rstd);

size_t layer_norm_backward_workspace_bytes(Context& context, const LayerNormParams& params);

// dy is the gradient after the activation, which is recomputed from x. dx is overwritten; dgamma and dbeta
// (null for no affine map; the sum over no rows is 0) follow `mode`.
void layer_norm_backward(Context& context, const LayerNormParams& params, ConstData x, ConstData gamma,
                         ConstData beta, const float* mean, const float* rstd, ConstData dy, Data dx,
                         Data dgamma, Data dbeta, GradMode mode, Workspace workspace);

}  // namespace vesal::kernels
