// The sizes that the losses are tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/losses/losses.hpp"

namespace vesal::kernels {

struct RegionLossCase {
  std::string name;
  RegionLossParams params;
  float scale = 2.0f;     // of the logits
  int empty_region = -1;  // a region without a voxel, or -1
};

// A slab holds about 256 voxels.
inline const std::vector<RegionLossCase> kRegionLossCases = {
    {"one_voxel", {.n = 1, .voxels = 1}},
    {"slab_minus_one", {.n = 1, .voxels = 255}},
    {"slab", {.n = 2, .voxels = 256, .dice_weight = 0.7f, .bce_weight = 0.3f}},
    {"slab_plus_one", {.n = 2, .voxels = 257, .batch_dice = true}},
    {"empty_region", {.n = 2, .voxels = 100}, 2.0f, 2},
    {"empty_region_batch", {.n = 3, .voxels = 40, .batch_dice = true}, 2.0f, 0},
    {"far_logits", {.n = 1, .voxels = 64}, 100.0f},
    {"one_region", {.n = 1, .voxels = 300, .regions = 1}},
    {"five_regions", {.n = 2, .voxels = 33, .regions = 5}},
    {"dice_only", {.n = 1, .voxels = 50, .bce_weight = 0.0f}},
    {"bce_only", {.n = 1, .voxels = 50, .dice_weight = 0.0f}},
};

struct EdgeLossCase {
  std::string name;
  EdgeLossParams params;
  float scale = 2.0f;
  // Targets drawn uniformly from these.
  std::vector<uint8_t> targets{0, 1, 2};
};

inline const std::vector<EdgeLossCase> kEdgeLossCases = {
    {"one_voxel", {.voxels = 1}, 2.0f, {1}},
    {"slab_minus_one", {.voxels = 255}},
    {"slab", {.voxels = 256}},
    {"slab_plus_one", {.voxels = 257, .negative_factor = 1.0f}},
    {"all_ignored", {.voxels = 70}, 2.0f, {2}},
    {"no_edge", {.voxels = 70}, 2.0f, {0, 2}},
    {"only_edge", {.voxels = 70}, 2.0f, {1}},
    {"rare_edge", {.voxels = 1000}, 2.0f, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}},
    {"far_logits", {.voxels = 129}, 100.0f},
};

struct EdgeTargetsCase {
  std::string name;
  int64_t n, d, h, w;
  int top_label = 3;  // labels are drawn from 0..top_label
  int blocks = 2;     // in cubes of this edge, so that there is an inside
};

inline const std::vector<EdgeTargetsCase> kEdgeTargetsCases = {
    {"one", 1, 1, 1, 1},
    {"line", 1, 1, 1, 40},
    {"plane", 2, 1, 9, 33, 3, 3},
    {"cube", 1, 7, 6, 31, 3, 3},
    {"vector", 1, 4, 5, 32, 3, 4},
    {"batch", 3, 3, 2, 33, 2},
    {"other_labels", 1, 4, 4, 9, 9},
    {"constant", 1, 5, 5, 5, 0},
};

}  // namespace vesal::kernels
