// Instance normalisation (Ulyanov, Vedaldi, Lempitsky 2016): every channel of every sample is brought to mean
// 0 and variance 1 over its voxels, then scaled and shifted, then activated:
//   y = activation((x - mean) * rstd * gamma + beta)
// x, y, dy and dx are stored as float32, bf16 or f16 (kernels/context/storage.hpp); all else is float32.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

struct InstanceNormParams {
  int64_t n = 1;         // samples
  int64_t spatial = 1;   // voxels of one sample, D*H*W, >= 0
  int64_t channels = 1;  // >= 1
  float eps = 1e-5f;
  Activation activation = Activation::none;  // none, relu or leaky_relu
  float negative_slope = 0.01f;              // of leaky_relu
};

size_t instance_norm_workspace_bytes(Context& context, const InstanceNormParams& params);

// x, y [n, spatial, channels]; gamma, beta [channels], both null for no affine map; mean, rstd [n, channels]
// are always written, but for an empty x. The variance is biased and free of cancellation (centred or merged
// as in Chan et al. 1979).
void instance_norm_forward(Context& context, const InstanceNormParams& params, ConstData x, ConstData gamma,
                           ConstData beta, Data y, float* mean, float* rstd, Workspace workspace);

// dy is the gradient after the activation, which is recomputed from x. dx is overwritten; dgamma and dbeta
// (null for no affine map; sums over nothing are 0) follow `mode`.
void instance_norm_backward(Context& context, const InstanceNormParams& params, ConstData x, ConstData gamma,
                            ConstData beta, const float* mean, const float* rstd, ConstData dy, Data dx,
                            Data dgamma, Data dbeta, GradMode mode, Workspace workspace);

}  // namespace vesal::kernels
