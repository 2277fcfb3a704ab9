// The sizes that the losses are tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
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
    {"no_samples", {.n = 0, .voxels = 5}},
    {"no_samples_batch", {.n = 0, .voxels = 5, .batch_dice = true}},
    {"no_voxels", {.n = 2, .voxels = 0}},
    {"no_voxels_batch", {.n = 2, .voxels = 0, .batch_dice = true}},
    {"one_element", {.n = 1, .voxels = 1, .regions = 1}, 0.0f},
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
    {"no_voxels", {.voxels = 0}},
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
    {"no_samples", 0, 2, 3, 4},
    {"no_planes", 1, 0, 3, 4},
    {"no_rows", 1, 2, 0, 4},
    {"no_columns", 1, 2, 3, 0},
};

inline RegionLossCase random_region_loss_case(RandomStream& random) {
  RegionLossCase c;
  c.params = {.n = 1 + random.below(3),
              .voxels = 1 + random.below(random.below(4) == 0 ? 400 : 30),
              .regions = 1 + random.below(5),
              .dice_weight = random.uniform(0.1f, 2.0f),
              .bce_weight = random.uniform(0.1f, 2.0f),
              .batch_dice = random.bernoulli(0.5f)};
  c.scale = random.uniform(0.5f, 10.0f);
  c.empty_region = static_cast<int>(random.below(c.params.regions + 1)) - 1;
  c.name = concat("[", c.params.n, ", ", c.params.voxels, ", ", c.params.regions, "] scale ", c.scale,
                  " empty region ", c.empty_region, c.params.batch_dice ? " batch" : "");
  return c;
}

inline EdgeLossCase random_edge_loss_case(RandomStream& random) {
  EdgeLossCase c;
  c.params = {.voxels = 1 + random.below(random.below(4) == 0 ? 700 : 40),
              .negative_factor = random.uniform(0.5f, 2.0f)};
  c.scale = random.uniform(0.5f, 10.0f);
  c.targets.clear();
  for (int64_t i = random.below(4); i >= 0; --i) {
    c.targets.push_back(static_cast<uint8_t>(random.below(3)));
  }
  c.name = concat(c.params.voxels, " voxels, scale ", c.scale, ", ", c.targets.size(), " targets");
  return c;
}

inline EdgeTargetsCase random_edge_targets_case(RandomStream& random) {
  return {"random",
          1 + random.below(2),
          1 + random.below(6),
          1 + random.below(6),
          1 + random.below(random.below(4) == 0 ? 70 : 8),
          static_cast<int>(1 + random.below(9)),
          static_cast<int>(1 + random.below(3))};
}

// For benchmarks: the regions of a tumour, and its edges, at 64^3 and 128^3.
inline const std::vector<RegionLossCase> kRegionLossBenchmarkCases = {
    {"3_64", {.n = 2, .voxels = 262144}},
    {"3_128", {.n = 1, .voxels = 2097152}},
    {"3_64_batch", {.n = 2, .voxels = 262144, .batch_dice = true}},
};
inline const std::vector<EdgeLossCase> kEdgeLossBenchmarkCases = {
    {"64", {.voxels = 524288}},
    {"128", {.voxels = 2097152}},
};
inline const std::vector<EdgeTargetsCase> kEdgeTargetsBenchmarkCases = {
    {"64", 2, 64, 64, 64},
    {"128", 1, 128, 128, 128},
};

inline Work region_loss_work(const RegionLossParams& p, bool backward) {
  return {.bytes = static_cast<double>(p.n * p.voxels * p.regions * (backward ? 9 : 5))};
}
inline Work edge_loss_work(const EdgeLossParams& p, bool backward) {
  return {.bytes = static_cast<double>(p.voxels * (backward ? 9 : 5))};
}
inline Work region_targets_work(const EdgeTargetsCase& c) {
  return {.bytes = static_cast<double>(c.n * c.d * c.h * c.w * 4)};
}
inline Work edge_targets_work(const EdgeTargetsCase& c) {
  return {.bytes = static_cast<double>(c.n * c.d * c.h * c.w * 2)};
}

}  // namespace vesal::kernels
