// Connected components of a mask, bounding boxes, and the statistics of regions.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "imaging/volume.hpp"

namespace vesal::imaging {

struct Components {
  std::vector<int32_t> labels;  // [D, H, W]; 0 outside, 1.. in order of each component's first voxel
  std::vector<int64_t> voxels;  // size of component i + 1
};

// 26-connected components of the nonzero voxels (they touch by face, edge or corner).
Components connected_components(const LabelMap& mask);

// Sets to 0 the voxels of every component (of nonzero voxels) that has fewer than `min_voxels`; returns how
// many components went.
int64_t remove_small_components(LabelMap& labels, int64_t min_voxels);
// Keeps the largest component only (the first on a tie).
void keep_largest_component(LabelMap& labels);

// The smallest box around the nonzero voxels; nothing when there is none.
std::optional<Box3> bounding_box(const LabelMap& mask);

struct RegionStatistics {
  int64_t voxels = 0;
  double volume_ml = 0;
  Box3 box;             // voxels of the canonical grid; all 0 when empty
  Vector3 centroid_mm;  // RAS+; 0 when empty
  int64_t components = 0;
  double largest_component_ml = 0;
};

// Of the nonzero voxels.
RegionStatistics region_statistics(const LabelMap& mask);

}  // namespace vesal::imaging
