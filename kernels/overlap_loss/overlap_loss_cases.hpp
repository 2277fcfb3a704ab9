// The sizes that the overlap losses are tested and measured with.
#pragma once

#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/overlap_loss/overlap_loss.hpp"

namespace vesal::kernels {

struct OverlapLossCase {
  std::string name;
  OverlapLossParams params;
  float scale = 2.0f;      // of the logits
  int empty_channel = -1;  // a class or region without a voxel, or -1
  float ignored = 0.0f;    // share of the targets
};

// A slab holds about 256 voxels, the CPU works on 64 at a time, a warp's lanes share a voxel of up to 32
// classes.
inline const std::vector<OverlapLossCase> kOverlapLossCases = {
    {"one_voxel", {}},
    {"no_samples", {.n = 0, .voxels = 4, .channels = 3}},
    {"no_samples_batch", {.n = 0, .voxels = 4, .channels = 3, .batch = true}},
    {"no_voxels", {.kind = Overlap::iou, .n = 2, .voxels = 0, .channels = 3}},
    {"no_voxels_batch", {.n = 2, .voxels = 0, .channels = 3, .batch = true}},
    {"regions_no_samples", {.softmax = false, .n = 0, .voxels = 4, .channels = 3}},
    {"regions_no_voxels", {.softmax = false, .n = 2, .voxels = 0, .channels = 3}},
    {"one_class", {.voxels = 5, .channels = 1}},
    {"block_minus_one", {.voxels = 63, .channels = 4, .first_channel = 1}},
    {"block", {.n = 2, .voxels = 64, .channels = 4, .first_channel = 1, .batch = true}},
    {"block_plus_one", {.n = 3, .voxels = 65, .channels = 3}},
    {"slab_minus_one", {.n = 2, .voxels = 255, .channels = 2, .first_channel = 1}},
    {"slab", {.kind = Overlap::iou, .voxels = 256, .channels = 5}},
    {"slab_plus_one", {.kind = Overlap::iou, .n = 2, .voxels = 257, .channels = 3, .batch = true}},
    {"two_slabs", {.n = 2, .voxels = 513, .channels = 4, .ignore_label = 255, .batch = true}, 2.0f, -1, 0.3f},
    {"warp", {.n = 2, .voxels = 20, .channels = 32}},
    {"warp_plus_one", {.kind = Overlap::iou, .voxels = 21, .channels = 33, .first_channel = 1}},
    {"most_channels", {.voxels = 9, .channels = 256}},
    {"empty_class", {.n = 2, .voxels = 100, .channels = 4, .first_channel = 1}, 2.0f, 2},
    {"empty_class_iou", {.kind = Overlap::iou, .n = 2, .voxels = 40, .channels = 3, .smooth = 1.0f}, 2.0f, 1},
    {"all_ignored", {.n = 2, .voxels = 30, .channels = 3, .ignore_label = 7}, 2.0f, -1, 1.0f},
    {"ignored_class", {.n = 1, .voxels = 90, .channels = 3, .ignore_label = 0}, 2.0f, -1, 0.2f},
    {"far_logits", {.n = 2, .voxels = 64, .channels = 4}, 100.0f},
    {"regions", {.softmax = false, .n = 2, .voxels = 257, .channels = 3}},
    {"regions_iou",
     {.kind = Overlap::iou, .softmax = false, .n = 2, .voxels = 100, .channels = 3, .batch = true}},
    {"one_region", {.kind = Overlap::iou, .softmax = false, .n = 3, .voxels = 255, .channels = 1}},
    {"regions_ignored",
     {.softmax = false, .n = 2, .voxels = 300, .channels = 5, .ignore_label = 2},
     2.0f,
     3,
     0.3f},
    {"regions_warp_plus_one", {.softmax = false, .voxels = 19, .channels = 33}},
    {"regions_far_logits", {.kind = Overlap::iou, .softmax = false, .voxels = 64, .channels = 3}, 100.0f},
};

inline OverlapLossCase draw_overlap_loss_case(RandomStream& random) {
  OverlapLossCase c;
  c.name = "random";
  OverlapLossParams& p = c.params;
  p.kind = random.below(2) == 0 ? Overlap::dice : Overlap::iou;
  p.softmax = random.below(3) != 0;
  p.n = 1 + random.below(3);
  p.channels = 1 + random.below(random.below(4) == 0 ? 40 : 5);
  p.voxels = 1 + random.below(900 / (p.n * p.channels));
  p.first_channel = random.below(2) == 0 ? 0 : random.below(p.channels);
  p.batch = random.below(2) == 0;
  p.smooth = random.below(2) == 0 ? 1e-5f : 1.0f;
  if (random.below(2) == 0) {
    p.ignore_label = 255;
    c.ignored = 0.3f;
  }
  return c;
}

// For benchmarks: nnU-Net's soft Dice, and overlapping regions.
inline const std::vector<OverlapLossCase> kOverlapLossBenchmarkCases = {
    {"dice_4_64", {.n = 2, .voxels = 262144, .channels = 4, .first_channel = 1, .batch = true}},
    {"dice_4_128", {.n = 2, .voxels = 2097152, .channels = 4, .first_channel = 1, .batch = true}},
    {"iou_4_64", {.kind = Overlap::iou, .n = 2, .voxels = 262144, .channels = 4, .first_channel = 1}},
    {"regions_3_64", {.softmax = false, .n = 2, .voxels = 262144, .channels = 3}},
};

inline Work overlap_loss_work(const OverlapLossParams& p, bool backward) {
  const auto logits = static_cast<double>(p.n * p.voxels * p.channels);
  const auto targets = p.softmax ? static_cast<double>(p.n * p.voxels) : logits;
  return {.bytes = 4.0 * logits * (backward ? 2 : 1) + targets};
}

}  // namespace vesal::kernels
