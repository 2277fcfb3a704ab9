// Resampling between grids that cover the same box in space with the same axes, at different spacings.
//
// Voxel t of the target lies at (t + 0.5) * scale - 0.5 of the source, scale = n_source / n_target on each
// axis; at the faces the nearest voxel goes on. Where scale >= 1.5 the two linear weights widen to a triangle
// of half-width `scale` (a low-pass), so that 1 mm -> 2 mm does not alias. Axes are separable and every voxel
// is a fixed sum: results do not depend on the number of threads. Equal sizes are copied bit for bit.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "imaging/volume.hpp"

namespace vesal::imaging {

// The grid over the same box with n = round(n * spacing / wanted), at least 1, voxels on each axis. Its
// spacing is exactly box / n, so it may differ from the wanted one by less than half a voxel spread over the
// axis.
Geometry geometry_for_spacing(const Geometry& geometry, Vector3 spacing_mm);

// Trilinear. Throws ShapeError when the two grids do not cover the same box to within half a voxel.
Image resample_to_grid(const Image& image, const Geometry& target);
Image resample_to_spacing(const Image& image, Vector3 spacing_mm);

// Labels by one-hot trilinear interpolation and the largest sum (the smaller label on a tie): smooth borders,
// and no label that was not there.
LabelMap resample_to_grid(const LabelMap& labels, const Geometry& target);
LabelMap resample_to_spacing(const LabelMap& labels, Vector3 spacing_mm);

// Labels from the nearest voxel.
LabelMap resample_nearest(const LabelMap& labels, const Geometry& target);

// The slices [z_begin, z_end) of `target` of a [D, H, W, channels] source, into `out` [z_end - z_begin, H, W,
// channels]. The building block of the above, for callers that must not hold the whole target.
class SliceResampler {
 public:
  SliceResampler(Size3 source, Size3 target, int64_t channels);
  void run(std::span<const float> source, int64_t z_begin, int64_t z_end, std::span<float> out) const;

 private:
  // Weighted source positions of every target position on one axis.
  struct Axis {
    std::vector<int64_t> first;   // first source position
    std::vector<int64_t> offset;  // where its weights begin; one more entry than positions
    std::vector<float> weight;
  };
  static Axis make_axis(int64_t source, int64_t target);

  Size3 source_;
  Size3 target_;
  int64_t channels_;
  std::array<Axis, 3> axes_;
};

}  // namespace vesal::imaging
