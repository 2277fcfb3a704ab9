// Batch normalisation (Ioffe, Szegedy 2015), PyTorch's BatchNorm: every channel is brought to mean 0 and
// variance 1 over the voxels of all samples, then scaled and shifted, then activated:
//   y = activation((x - mean) * rstd * gamma + beta),   rstd = 1 / sqrt(variance + eps)
// In training mean and (biased) variance are the batch's, and running statistics follow them:
//   running_mean = (1 - momentum) running_mean + momentum mean
//   running_var  = (1 - momentum) running_var  + momentum variance rows / (rows - 1)
// In evaluation the running statistics are what x is normalised with.
// x, y, dy and dx are stored as float32, bf16 or f16 (kernels/context/storage.hpp); all else is float32.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

struct BatchNormParams {
  int64_t n = 1;         // samples, >= 0
  int64_t spatial = 1;   // voxels of one sample, D*H*W, >= 0
  int64_t channels = 1;  // >= 1
  float eps = 1e-5f;
  float momentum = 0.1f;  // 0 to 1
  bool training = true;
  Activation activation = Activation::none;  // none, relu, leaky_relu, gelu, silu or elu
  float negative_slope = 0.01f;              // of leaky_relu

  // Numbers behind a channel's statistics; in training at least 2, or none: then no statistic is written or
  // moved.
  int64_t rows() const { return n * spatial; }
};

size_t batch_norm_workspace_bytes(Context& context, const BatchNormParams& params);

// x, y [n, spatial, channels]; gamma, beta [channels], both null for no affine map; mean, rstd [channels] are
// what x was normalised with and are always written. running_mean, running_var [channels]: in training
// updated once a call (so twice a step where a module is applied twice), or both null; in evaluation read.
// The variance is free of cancellation (centred or merged as in Chan et al. 1979).
void batch_norm_forward(Context& context, const BatchNormParams& params, ConstData x, ConstData gamma,
                        ConstData beta, float* running_mean, float* running_var, Data y, float* mean,
                        float* rstd, Workspace workspace);

// dy is the gradient after the activation, which is recomputed from x; mean and rstd are the forward pass's.
// In training the statistics depend on x, in evaluation they are constants. dx is overwritten; dgamma and
// dbeta (null for no affine map; sums over nothing are 0) follow `mode`.
void batch_norm_backward(Context& context, const BatchNormParams& params, ConstData x, ConstData gamma,
                         ConstData beta, const float* mean, const float* rstd, ConstData dy, Data dx,
                         Data dgamma, Data dbeta, GradMode mode, Workspace workspace);

}  // namespace vesal::kernels
