// Losses as the last ops of a tape: the value stays on the device, the backward pass starts here with the given weight.
#pragma once

#include "kernels/losses/losses.hpp"
#include "runtime/tape.hpp"

namespace vesal::layers {

// labels [N, D, H, W] u8 (0, 1 = NCR, 2 = ED, 3 = ET) to WT, TC, ET masks [N, D, H, W, 3] u8.
Tensor region_targets(DeviceContext& context, const Tensor& labels);
// labels to [N, D, H, W] u8: 1 on both sides of every region's surface.
Tensor edge_targets(DeviceContext& context, const Tensor& labels);

struct RegionLossSettings {
  float dice_weight = 1.0f;
  float bce_weight = 0.5f;
  bool batch_dice = false;
};

// logits [N, ..., R], targets [N, ..., R] u8. Returns the loss, float32 [1] on the device, before `weight`.
Tensor region_loss(DeviceContext& context, const Variable& logits, const Tensor& targets,
                   const RegionLossSettings& settings, float weight);
// logits and targets with the same number of elements; class-balanced BCE, target 2 is ignored.
Tensor edge_loss(DeviceContext& context, const Variable& logits, const Tensor& targets, float weight);

}  // namespace vesal::layers
