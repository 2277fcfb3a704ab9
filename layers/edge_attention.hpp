// ESAB, the edge spatial attention block of "deep semantics + edge fusion" (Zhu et al., Information Fusion 91, 2023),
// in 3D: a gate from Sobel gradients, a bottleneck convolution, and one edge logit per voxel.
#pragma once

#include "layers/modules.hpp"

namespace vesal::layers {

class EdgeAttention {
 public:
  EdgeAttention(const ParameterBuilder& builder, int64_t channels);
  // x [N, D, H, W, C] to logits [N, D, H, W, 1]:
  //   y = x + Conv(ReLU(IN(sigmoid(|IN(Sobel(sum_c x))|) * x))),  logits = Conv1x1x1(y)
  // Conv is 1^3 C -> 32, ReLU, 3^3 32 -> 32, ReLU, 1^3 32 -> C. `spacing` is relative, in D, H, W.
  Variable operator()(DeviceContext& context, const Variable& x, std::array<float, 3> spacing) const;

 private:
  InstanceNorm gradient_norm_;
  InstanceNorm norm_;
  Linear reduce_;
  Conv3d conv_;
  Linear expand_;
  Linear head_;
};

}  // namespace vesal::layers
