// From a case to what a network sees, and back: crop to the head, resample, z-score.
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "imaging/case.hpp"
#include "imaging/volume.hpp"

namespace vesal::imaging {

struct PreprocessOptions {
  Vector3 spacing_mm{0, 0, 0};  // wanted spacing; 0 on an axis keeps the input's
};

// The volume a network sees, and everything needed to go back to the input's own grid.
struct PreparedCase {
  std::string name;
  ModalityMask present{};
  Geometry original;  // the case's grid
  Box3 box;           // of the original grid: the head (voxels nonzero in any present modality)
  Geometry cropped;   // the grid of that box
  Geometry geometry;  // the same box at the wanted spacing: the grid of all below
  std::array<Image, kModalityCount> images;  // z-scored inside the mask, 0 outside; empty where absent
  LabelMap mask;                             // 1 inside the head
  LabelMap labels;                           // internal labels; empty without a label file

  Size3 size() const { return geometry.size; }
};

// Each modality has mean 0 and standard deviation 1 over the mask, which is the union of the nonzero voxels
// of the present modalities. An absent modality has no influence on anything.
PreparedCase prepare_case(const Case& source, const PreprocessOptions& options = {});

// Copies the tile at `start` (which may reach outside: 0 there) into out [D, H, W, 4]; absent modalities give
// zeros.
void extract_tile(const PreparedCase& prepared, Size3 start, Size3 tile, std::span<float> out);

// The way back. Probabilities are those of the prepared grid, [D, H, W, channels]; they are upsampled
// trilinearly slab by slab and decided per voxel of the original grid, so that no more than a few full-size
// slices exist at a time. Outside the head's box the label is 0.
//
// channels = 3, WT, TC, ET as by label_of_regions:
LabelMap restore_region_labels(const PreparedCase& prepared, std::span<const float> probabilities,
                               float threshold = 0.5f);
// channels = classes, the largest wins (the first on a tie); logits serve as well as probabilities:
LabelMap restore_class_labels(const PreparedCase& prepared, std::span<const float> scores, int64_t classes);
// One channel's values on the original grid, 0 outside the box:
Image restore_probability(const PreparedCase& prepared, std::span<const float> probabilities,
                          int64_t channels, int64_t channel);
// A label map of the prepared grid (one-hot interpolation):
LabelMap restore_labels(const PreparedCase& prepared, const LabelMap& labels);

}  // namespace vesal::imaging
