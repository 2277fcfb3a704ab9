// Losses as the last ops of a tape: the value stays on the device, the backward pass starts here with the
// given weight.
#pragma once

#include "kernels/cross_entropy/cross_entropy.hpp"
#include "kernels/losses/losses.hpp"
#include "kernels/overlap_loss/overlap_loss.hpp"
#include "kernels/pointwise_loss/pointwise_loss.hpp"
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

// The losses below return float32 [1] on the device, before `weight`, which scales the gradient. The kernels'
// headers say what they compute. A label or mask that is none (and not ignore_label) makes loss and gradients
// NaN.

struct CrossEntropySettings {
  int ignore_label = -1;
  float label_smoothing = 0.0f;
  float focal_gamma = 0.0f;
  Tensor class_weights{};  // [C] float32; undefined: all 1
};

// logits [N, ..., C], labels [N, ...] u8.
Tensor cross_entropy_loss(DeviceContext& context, const Variable& logits, const Tensor& labels,
                          const CrossEntropySettings& settings, float weight);

struct OverlapLossSettings {
  kernels::Overlap kind = kernels::Overlap::dice;
  bool softmax = true;        // classes with labels, else regions with masks
  int64_t first_channel = 0;  // 1 leaves the background out
  int ignore_label = -1;
  float smooth = 1e-5f;
  bool batch = false;
};

// Soft Dice or IoU. logits [N, ..., C]; targets u8: labels [N, ...] with softmax, else masks [N, ..., C].
Tensor overlap_loss(DeviceContext& context, const Variable& logits, const Tensor& targets,
                    const OverlapLossSettings& settings, float weight);

// T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over rows. student, teacher [..., C]; no
// gradient goes to the teacher.
Tensor distillation_loss(DeviceContext& context, const Variable& student, const Tensor& teacher,
                         float temperature, float weight);

struct PointwiseLossSettings {
  kernels::PointwiseLoss kind = kernels::PointwiseLoss::l2;
  float beta = 1.0f;    // of smooth_l1
  float gamma = 0.0f;   // of bce: more than 0 is the focal loss
  float alpha = -1.0f;  // of bce: weight of targets 1, 1 - alpha that of targets 0; negative: both 1
  // float32; undefined: all 1.
  Tensor element_weights{};   // the shape of x
  Tensor channel_weights{};   // [C]
  Tensor positive_weights{};  // [C], bce
};

// Mean over the elements of L1, smooth L1, L2, or BCE with logits. x, target [..., C]; target float32, u8 for
// bce.
Tensor pointwise_loss(DeviceContext& context, const Variable& x, const Tensor& target,
                      const PointwiseLossSettings& settings, float weight);

}  // namespace vesal::layers
