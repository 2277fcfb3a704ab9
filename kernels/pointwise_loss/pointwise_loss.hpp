// Losses that compare two tensors element by element and take the mean: L1, smooth L1, L2, and binary cross
// entropy on logits, which with gamma > 0 is the focal loss. The loss is written to device memory (one
// float32) so that nothing waits for it; its backward pass takes a host-side weight.
// x, dx and targets that are not u8 are stored as float32, bf16 or f16 (kernels/context/storage.hpp); the
// loss and all weights are float32.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

enum class PointwiseLoss { l1, smooth_l1, l2, bce };

// What an element costs, x the prediction, t its target, d = x - t:
//   l1         |d|
//   smooth_l1  d^2 / (2 beta) where |d| < beta, else |d| - beta / 2           (torch.nn.SmoothL1Loss)
//   l2         d^2. With x and t the predicted and the true IoU: the loss of an IoU head
//   bce        x a logit, t in [0, 1], p = sigmoid(x):
//              - w a1 t (1 - p)^gamma log(p) - a0 (1 - t) p^gamma log(1 - p)
//              w the channel's positive weight; a1 = alpha, a0 = 1 - alpha, or both 1 where alpha < 0
// bce is torch.nn.BCEWithLogitsLoss, with gamma 2 and alpha 0.25 the focal loss of Lin et al. 2017,
// equation 5.
struct PointwiseLossParams {
  PointwiseLoss kind = PointwiseLoss::l2;
  int64_t rows = 1;
  int64_t channels = 1;
  float beta = 1.0f;    // of smooth_l1, more than 0
  float gamma = 0.0f;   // of bce, 0 or more
  float alpha = -1.0f;  // of bce, at most 1
};

// Weights in device memory; null is 1 everywhere. An element's weight is the product of both kinds.
struct PointwiseWeights {
  const float* elements = nullptr;  // [rows, channels]
  const float* channels = nullptr;  // [channels]
  const float* positive = nullptr;  // [channels], bce only
};

size_t pointwise_loss_workspace_bytes(Context& context, const PointwiseLossParams& params);
// loss [1] = mean over all elements (weights do not change the divisor, as in PyTorch) of weight * cost; 0
// without elements. x [rows, channels], target likewise, with bce also as u8. Throws ShapeError on a
// negative size, a parameter out of range, positive weights without bce, a null tensor or too small a
// workspace.
void pointwise_loss_forward(Context& context, const PointwiseLossParams& params, ConstData x,
                            ConstData target, const PointwiseWeights& weights, Data loss,
                            Workspace workspace);
// dx = weight * d loss / d x, overwritten. The slope of |d| at 0 is 0.
void pointwise_loss_backward(Context& context, const PointwiseLossParams& params, ConstData x,
                             ConstData target, const PointwiseWeights& weights, float weight, Data dx);

}  // namespace vesal::kernels
