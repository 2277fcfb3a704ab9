// Resizing channels-last volumes, as PyTorch's interpolate. Axis by axis, with `in` and `out` voxels, output
// o reads around the source position
//   (o + 1/2) in / out - 1/2           as a rule
//   (o + 1/2) / scale - 1/2            with a scale given (PyTorch's recompute_scale_factor=False)
//   o (in - 1) / (out - 1)             with align_corners; 0 for a single output
// and the weights of the axes are multiplied:
//   trilinear      the two neighbours, by distance; the position clamped to the volume. With a flat axis this
//                  is PyTorch's bilinear, with two of them its linear.
//   tricubic       four neighbours, Keys' kernel with a = -3/4; indices clamped to the volume. With the depth
//                  kept this is PyTorch's bicubic.
//   nearest        floor(o in / out) or floor(o / scale), at most in - 1
//   nearest_exact  floor((o + 1/2) in / out) or floor((o + 1/2) / scale), at most in - 1
//
// Positions are fractions of whole numbers: all devices agree on them. PyTorch's are float32 for float32
// volumes and float64 for float64 ones (nearest: always float32): values agree to rounding; nearest is the
// same for growing by whole factors up to 16, while for some 2 % of other pairs of extents PyTorch takes the
// voxel before at an output or two where i * in / out is whole. With a scale given, PyTorch's CPU code copies
// an axis whose extents are equal (trilinear and both nearest), whatever the scale says, and doubles one
// whose output is twice as long (nearest); this code uses the scale, as PyTorch's CUDA code does.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

enum class Interpolation { trilinear, nearest, nearest_exact, tricubic };

// Extents are 1 to 32767.
struct ResizeParams {
  int64_t n = 1;
  int64_t d = 1, h = 1, w = 1;
  int64_t out_d = 1, out_h = 1, out_w = 1;
  int64_t c = 1;
  Interpolation interpolation = Interpolation::trilinear;
  bool align_corners = false;               // trilinear and tricubic only; scale is then ignored
  std::array<double, 3> scale = {0, 0, 0};  // of D, H, W, 1/32767 to 32767; 0: from the extents
};

// The extent that PyTorch gives an axis resized by a scale.
inline int64_t resized_extent(int64_t extent, double scale) {
  return static_cast<int64_t>(std::floor(static_cast<double>(extent) * scale));
}

// x, y, dy and dx are stored as float32, bf16 or f16 (kernels/context/storage.hpp); sums are float32, rounded
// once.

// x [n, d, h, w, c], y [n, out_d, out_h, out_w, c]. n and c may be 0; as in PyTorch, extents may not.
void resize_forward(Context& context, const ResizeParams& params, ConstData x, Data y);
// dx is overwritten; a gather over the outputs that read each input voxel, so no atomics.
void resize_backward(Context& context, const ResizeParams& params, ConstData dy, Data dx);

}  // namespace vesal::kernels
