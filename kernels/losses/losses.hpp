// Segmentation losses on logits, and the targets they compare with. A loss is written to device memory (one
// float32) so that nothing waits for it; its backward pass takes a host-side weight.
// logits and dlogits are stored as float32, bf16 or f16 (kernels/context/storage.hpp); losses, dice and
// counts are float32.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// Overlapping regions of a tumour label map (1 = NCR, 2 = ED, 3 = ET): channel 0 WT = {1,2,3}, 1 TC = {1,3},
// 2 ET = {3}. labels [voxels] of the whole batch, targets [voxels, 3] of 0 and 1.
void region_targets(Context& context, int64_t voxels, const uint8_t* labels, uint8_t* targets);

// 1 where any of WT, TC, ET changes between a voxel and one of its 26 neighbours (the union of the inner and
// outer morphological gradients of the three masks), else 0. labels, edges [n, d, h, w].
void edge_targets(Context& context, int64_t n, int64_t d, int64_t h, int64_t w, const uint8_t* labels,
                  uint8_t* edges);

struct RegionLossParams {
  int64_t n = 1;
  int64_t voxels = 1;  // of one sample
  int64_t regions = 3;
  float dice_weight = 1.0f;
  float bce_weight = 0.5f;
  float smooth = 1e-5f;     // added to the numerator and the denominator of each Dice
  bool batch_dice = false;  // one Dice per region over the whole batch, else one per region and sample
};

size_t region_loss_workspace_bytes(Context& context, const RegionLossParams& params);
// loss = bce_weight * mean BCE-with-logits + dice_weight * mean over (region, sample or batch) of
//   1 - (2 sum(p t) + smooth) / (sum p + sum t + smooth),  p = sigmoid(logit).
// logits [n, voxels, regions], targets likewise (0, 1); loss [1]; dice [n or 1, regions, 2]: the numerator
// and the denominator, for the backward pass. A mean over nothing is 0: so is the loss for no samples or no
// voxels.
void region_loss_forward(Context& context, const RegionLossParams& params, ConstData logits,
                         const uint8_t* targets, Data loss, float* dice, Workspace workspace);
// dlogits = weight * d loss / d logits, overwritten.
void region_loss_backward(Context& context, const RegionLossParams& params, ConstData logits,
                          const uint8_t* targets, const float* dice, float weight, Data dlogits);

struct EdgeLossParams {
  int64_t voxels = 1;            // of the whole batch
  float negative_factor = 1.1f;  // of the non-edge class' weight
};

size_t edge_loss_workspace_bytes(Context& context, const EdgeLossParams& params);
// Class-balanced BCE with logits, mean over voxels whose target is not 2 (ignored): edge voxels (1) weigh
// n_neg / (n_pos + n_neg), others (0) negative_factor * n_pos / (n_pos + n_neg). 0 when every voxel is
// ignored. logits, targets [voxels]; loss [1]; counts [2] = n_pos, n_neg for the backward pass.
void edge_loss_forward(Context& context, const EdgeLossParams& params, ConstData logits,
                       const uint8_t* targets, Data loss, float* counts, Workspace workspace);
void edge_loss_backward(Context& context, const EdgeLossParams& params, ConstData logits,
                        const uint8_t* targets, const float* counts, float weight, Data dlogits);

}  // namespace vesal::kernels
