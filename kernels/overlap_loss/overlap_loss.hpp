// Soft Dice and soft Jaccard (IoU) losses: on the softmax over classes with integer labels, or on the sigmoid
// of each of several regions that may overlap. The loss is written to device memory (one float32) so that
// nothing waits for it; its backward pass takes a host-side weight.
// logits and dlogits are stored as float32, bf16 or f16 (kernels/context/storage.hpp); loss and slopes are
// float32.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

enum class Overlap { dice, iou };

struct OverlapLossParams {
  Overlap kind = Overlap::dice;
  bool softmax = true;  // p = softmax over channels and labels; else p = sigmoid and masks
  int64_t n = 1;
  int64_t voxels = 1;         // of one sample
  int64_t channels = 2;       // classes or regions; 1 to 256
  int64_t first_channel = 0;  // 1 leaves the background out
  int ignore_label = -1;      // targets with this value count nowhere, their logits may be anything; -1: none
  float smooth = 1e-5f;       // added to the numerator and the denominator; more than 0
  bool batch = false;         // one ratio per channel over the whole batch, else one per channel and sample

  int64_t groups() const { return batch ? 1 : n; }
};

size_t overlap_loss_workspace_bytes(Context& context, const OverlapLossParams& params);
// loss [1] = mean over groups and channels from first_channel on of 1 - A / B, with sums over a group's
// voxels and t = 1 where the target names the channel:
//   dice  A = 2 sum(p t) + smooth,  B = sum(p) + sum(t) + smooth
//   iou   A = sum(p t) + smooth,    B = sum(p) + sum(t) - sum(p t) + smooth
// With softmax this is nnU-Net's soft Dice plus 1 (Isensee et al. 2021; do_bg = false is first_channel 1).
// logits [n, voxels, channels]; targets: labels [n, voxels] with softmax, else masks [n, voxels, channels] of
// 0 and 1. A target that is none of these, nor ignore_label, makes the loss and gradients NaN, so that it
// does not pass unseen. A mean over no group is 0; without voxels A = B and the loss is 0. slopes [groups,
// channels, 2] are for the backward pass: d loss / d p = slopes[0] - slopes[1] t. Throws ShapeError on a size
// or parameter out of range, a null tensor or too small a workspace.
void overlap_loss_forward(Context& context, const OverlapLossParams& params, ConstData logits,
                          const uint8_t* targets, Data loss, float* slopes, Workspace workspace);
// dlogits = weight * d loss / d logits, overwritten; 0 where the target is ignored.
void overlap_loss_backward(Context& context, const OverlapLossParams& params, ConstData logits,
                           const uint8_t* targets, const float* slopes, float weight, Data dlogits);

}  // namespace vesal::kernels
