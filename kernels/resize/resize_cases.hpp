// Sizes that resizing is tested with: growing and shrinking by whole and broken factors, each axis by itself,
// single voxels, channels around the 16 lanes of a vector (cpu), counts of elements, and of packs of four
// channels, around a block of 256 threads, and factors around the four outputs that a gather takes at a time
// (CUDA).
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/resize/resize.hpp"

namespace vesal::kernels {

struct ResizeCase {
  std::string name;
  ResizeParams params;  // tested with each of kResizeConventions
  // Whether the trilinear weights are multiples of a small power of two: integers then stay exact.
  bool dyadic;
};

inline const std::vector<ResizeCase> kResizeCases = {
    {"one_voxel", {1, 1, 1, 1, 1, 1, 1, 1}, true},
    {"one_voxel_grows", {2, 1, 1, 1, 3, 4, 5, 2}, true},
    {"same_size", {2, 3, 4, 5, 3, 4, 5, 6}, true},
    {"times_2", {2, 3, 4, 5, 6, 8, 10, 3}, true},
    {"times_4", {1, 2, 3, 2, 8, 12, 8, 2}, true},
    {"times_16", {1, 2, 1, 2, 32, 16, 32, 1}, true},
    {"times_3", {1, 2, 3, 4, 6, 9, 12, 5}, false},
    {"half", {2, 4, 6, 8, 2, 3, 4, 3}, true},
    {"quarter", {1, 8, 4, 16, 2, 1, 4, 2}, true},
    {"third", {1, 9, 6, 12, 3, 2, 4, 2}, true},
    {"broken_growing", {2, 5, 3, 7, 7, 8, 10, 3}, false},
    {"broken_shrinking", {2, 7, 8, 10, 5, 3, 7, 3}, false},
    {"to_one_voxel", {2, 4, 5, 6, 1, 1, 1, 3}, true},
    {"only_d", {1, 3, 4, 5, 7, 4, 5, 4}, false},
    {"only_h", {1, 3, 4, 5, 3, 7, 5, 4}, false},
    {"only_w", {1, 3, 4, 5, 3, 4, 7, 4}, false},
    {"flat", {2, 1, 5, 6, 1, 10, 12, 1}, true},
    {"mixed", {1, 8, 3, 5, 3, 8, 5, 2}, false},
    {"channels_15", {1, 2, 2, 3, 4, 4, 6, 15}, true},
    {"channels_16", {1, 2, 2, 3, 4, 4, 6, 16}, true},
    {"channels_17", {1, 2, 2, 3, 4, 4, 6, 17}, true},
    {"outputs_255", {1, 1, 2, 16, 1, 3, 85, 1}, false},
    {"outputs_256", {1, 1, 2, 16, 1, 4, 64, 1}, true},
    {"outputs_257", {1, 1, 1, 16, 1, 1, 257, 1}, false},
    {"packs_255", {1, 1, 2, 16, 1, 3, 85, 4}, false},
    {"packs_256", {1, 1, 2, 16, 1, 4, 64, 4}, true},
    {"packs_257", {1, 1, 1, 16, 1, 1, 257, 4}, false},
    {"packs_times_2", {2, 3, 4, 5, 6, 8, 10, 8}, true},
    {"packs_broken", {2, 7, 3, 10, 5, 8, 7, 12}, false},
    {"readers_3", {1, 1, 2, 4, 1, 2, 12, 2}, false},
    {"readers_4", {1, 1, 2, 4, 1, 2, 16, 4}, true},
    {"readers_5", {1, 1, 2, 4, 1, 2, 20, 4}, false},
};

// For benchmarks, with both interpolations: logits brought to full resolution, decoders without transposed
// convolutions, and a halved volume.
inline const std::vector<ResizeCase> kResizeBenchmarkCases = {
    {"3_16_to_64", {1, 16, 16, 16, 64, 64, 64, 3}, true},
    {"1_32_to_64", {1, 32, 32, 32, 64, 64, 64, 1}, true},
    {"4_32_to_128", {1, 32, 32, 32, 128, 128, 128, 4}, true},
    {"32_48_to_96", {1, 48, 48, 48, 96, 96, 96, 32}, true},
    {"4_96_to_48", {1, 96, 96, 96, 48, 48, 48, 4}, true},
};

// Of either pass.
inline Work resize_work(const ResizeParams& p) {
  return {.bytes = 4.0 * static_cast<double>(p.n * p.c * (p.d * p.h * p.w + p.out_d * p.out_h * p.out_w))};
}

// With scales that are not the ratio of the extents, and outputs that reach beyond the volume.
inline const std::vector<ResizeCase> kScaledResizeCases = {
    {"scaled_up", {2, 3, 5, 4, 6, 12, 9, 3, {}, false, {2.1, 2.5, 2.3}}, false},
    {"scaled_down", {1, 9, 7, 8, 4, 5, 2, 5, {}, false, {0.5, 0.8, 0.3}}, false},
    {"one_axis_scaled", {1, 3, 4, 5, 3, 6, 11, 4, {}, false, {0, 1.5, 2.2}}, false},
    {"beyond_the_volume", {1, 2, 3, 4, 9, 7, 20, 2, {}, false, {2, 1.25, 3}}, false},
    {"short_of_the_volume", {1, 6, 3, 40, 2, 2, 9, 2, {}, false, {1, 1.5, 0.7}}, false},
    {"extreme_scales", {1, 2, 40, 3, 12, 2, 3, 2, {}, false, {1000, 1.0 / 32767, 32767}}, false},
};

struct ResizeConvention {
  const char* name;
  Interpolation interpolation;
  bool align_corners;
};

inline const std::vector<ResizeConvention> kResizeConventions = {
    {"trilinear", Interpolation::trilinear, false}, {"trilinear_corners", Interpolation::trilinear, true},
    {"nearest", Interpolation::nearest, false},     {"nearest_exact", Interpolation::nearest_exact, false},
    {"tricubic", Interpolation::tricubic, false},   {"tricubic_corners", Interpolation::tricubic, true},
};

inline ResizeParams with_convention(ResizeParams params, const ResizeConvention& convention) {
  params.interpolation = convention.interpolation;
  params.align_corners = convention.align_corners;
  return params;
}

inline ResizeParams random_resize_params(RandomStream& random) {
  ResizeParams p;
  p.n = 1 + random.below(2);
  p.c = 1 + random.below(random.below(4) == 0 ? 35 : 5);
  int64_t* const extents[3][2] = {{&p.d, &p.out_d}, {&p.h, &p.out_h}, {&p.w, &p.out_w}};
  for (size_t axis = 0; axis < 3; ++axis) {
    *extents[axis][0] = 1 + random.below(7);
    *extents[axis][1] = random.below(4) == 0 ? *extents[axis][0] : 1 + random.below(11);
    if (random.below(4) == 0) {
      p.scale[axis] = static_cast<double>(2 + random.below(31)) / 8;
      *extents[axis][1] = std::max<int64_t>(1, resized_extent(*extents[axis][0], p.scale[axis]));
    }
  }
  return with_convention(p, kResizeConventions[static_cast<size_t>(random.below(6))]);
}

}  // namespace vesal::kernels
