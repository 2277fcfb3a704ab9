// Group normalisation (Wu, He 2018), PyTorch's GroupNorm: the channels of every sample are cut into groups of
// neighbours; each group is brought to mean 0 and variance 1 over its voxels and channels, then every channel
// is scaled and shifted, then activated:
//   y = activation((x - mean) * rstd * gamma + beta),   rstd = 1 / sqrt(variance + eps)
// One group is a layer normalisation of the whole sample; as many groups as channels is instance
// normalisation.
// x, y, dy and dx are stored as float32, bf16 or f16 (kernels/context/storage.hpp); all else is float32.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

struct GroupNormParams {
  int64_t n = 1;         // samples, >= 0
  int64_t spatial = 1;   // voxels of one sample, D*H*W, >= 0
  int64_t channels = 1;  // >= 1
  int64_t groups = 1;    // 1 to channels, divides channels
  float eps = 1e-5f;
  Activation activation = Activation::none;  // none, relu, leaky_relu, gelu, silu or elu
  float negative_slope = 0.01f;              // of leaky_relu
};

size_t group_norm_workspace_bytes(Context& context, const GroupNormParams& params);

// x, y [n, spatial, channels]; gamma, beta [channels], both null for no affine map; mean, rstd [n, groups]
// are always written, but for an empty x. The variance is biased and free of cancellation (centred or merged
// as in Chan et al. 1979).
void group_norm_forward(Context& context, const GroupNormParams& params, ConstData x, ConstData gamma,
                        ConstData beta, Data y, float* mean, float* rstd, Workspace workspace);

// dy is the gradient after the activation, which is recomputed from x. dx is overwritten; dgamma and dbeta
// (null for no affine map; sums over nothing are 0) follow `mode`.
void group_norm_backward(Context& context, const GroupNormParams& params, ConstData x, ConstData gamma,
                         ConstData beta, const float* mean, const float* rstd, ConstData dy, Data dx,
                         Data dgamma, Data dbeta, GradMode mode, Workspace workspace);

}  // namespace vesal::kernels
