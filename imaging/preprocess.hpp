// From a case to what a network sees, and back: crop to the head, resample, scale the intensities.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "imaging/case.hpp"
#include "imaging/volume.hpp"

namespace vesal::imaging {

// How a modality's intensities are scaled; `low` and `high` belong to quantiles.
struct IntensityScaling {
  enum class Kind {
    zscore,    // mean 0 and standard deviation 1 over the mask, 0 outside it
    minmax,    // the least value of the whole volume becomes 0, the greatest 1
    quantiles  // the quantile `low` of the whole volume becomes 0, `high` 1; what passes them is clipped to
               // [0, 1]
  };
  Kind kind = Kind::zscore;
  double low = 0;
  double high = 1;

  friend bool operator==(const IntensityScaling&, const IntensityScaling&) = default;
};
// "zscore", "minmax", "quantiles 0.02 0.98" (0 <= low < high <= 1), and back. Throws UsageError for anything
// else.
IntensityScaling parse_intensity_scaling(std::string_view text);
std::string to_string(const IntensityScaling& scaling);
// The values at `low` and `high` of n values, by linear interpolation between the order statistics at q (n -
// 1), as in numpy. Throws ShapeError where there are none.
std::pair<double, double> quantiles(std::span<const float> values, double low, double high);

struct PreprocessOptions {
  Vector3 spacing_mm{0, 0, 0};  // wanted spacing; 0 on an axis keeps the input's
  IntensityScaling intensity = {};
  bool crop_to_head = true;  // false: the whole volume, all of which counts as head
};

// The volume a network sees, and everything needed to go back to the input's own grid.
struct PreparedCase {
  std::string name;
  ModalityMask present{};
  Geometry original;  // the case's grid
  Box3 box;           // of the original grid: the head (voxels nonzero in any present modality), or all of it
  Geometry cropped;   // the grid of that box
  Geometry geometry;  // the same box at the wanted spacing: the grid of all below
  std::array<Image, kModalityCount> images;  // scaled; empty where absent
  LabelMap mask;                             // 1 inside the head
  LabelMap labels;                           // internal labels; empty without a label file

  Size3 size() const { return geometry.size; }
};

// The mask is the union of the nonzero voxels of the present modalities. Each modality is scaled by itself; a
// constant one becomes 0. An absent modality has no influence on anything.
PreparedCase prepare_case(const Case& source, const PreprocessOptions& options = {});

// Copies the tile at `start` (which may reach outside: 0 there) into out [D, H, W, 4]; absent modalities give
// zeros.
void extract_tile(const PreparedCase& prepared, Size3 start, Size3 tile, std::span<float> out);
// The same for these modalities only, in this order: out [D, H, W, channels].
void extract_tile(const PreparedCase& prepared, Size3 start, Size3 tile, std::span<const Modality> channels,
                  std::span<float> out);

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
