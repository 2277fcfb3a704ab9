// Agreement of two masks: overlap, surface distance, volumes.
//
// HD95 follows medpy, which BraTS' older evaluations used: a mask's surface is the set of its voxels that
// have a face neighbour outside it (outside the grid counts as outside); the distances of each surface voxel
// to the other surface, in mm between voxel centres, are pooled from both sides, and the 95th percentile is
// taken with linear interpolation. (Taking the larger of two one-sided percentiles, as others do, gives other
// numbers.)
//
// Empty masks follow BraTS: both empty: Dice 1, IoU 1, HD95 0; one empty: Dice 0, IoU 0, HD95 373.13 mm, the
// diagonal of the 240 x 240 x 155 grid at 1 mm. The flags say when this rule applied, so that no mean hides
// it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "imaging/case.hpp"
#include "imaging/volume.hpp"

namespace vesal::imaging {

constexpr double kHd95OneEmpty = 373.13;

struct MaskMetrics {
  int64_t tp = 0;
  int64_t fp = 0;
  int64_t fn = 0;
  int64_t tn = 0;
  double dice = 0;
  double iou = 0;
  double hd95_mm = 0;
  double reference_ml = 0;
  double prediction_ml = 0;
  bool both_empty = false;
  bool one_empty = false;

  int64_t reference_voxels() const { return tp + fn; }
  int64_t prediction_voxels() const { return tp + fp; }
};

// Nonzero is inside. Throws ShapeError unless both lie on one grid size; spacing is the reference's.
MaskMetrics compare_masks(const LabelMap& prediction, const LabelMap& reference);

// WT, TC, ET of two maps of internal labels, in that order.
std::array<MaskMetrics, kRegionCount> compare_regions(const LabelMap& prediction, const LabelMap& reference);

// For each voxel the squared distance in mm^2 to the nearest nonzero voxel of `feature` (infinity without
// one), exact: Felzenszwalb & Huttenlocher, "Distance transforms of sampled functions", Theory of Computing
// 2012, axis by axis.
std::vector<double> squared_distance_mm2(std::span<const uint8_t> feature, Size3 size, Vector3 spacing_mm);

// The q-th percentile (0..100) with linear interpolation between order statistics, as numpy's default.
double percentile(std::vector<double> values, double q);

}  // namespace vesal::imaging
