// Resizing channels-last volumes to a given extent.
//
// trilinear: PyTorch's interpolate(mode="trilinear", align_corners=False): source = (i + 0.5) * in / out -
// 0.5, clamped.
//
// nearest: PyTorch's mode="nearest": source = floor(i * in / out).
//
// Positions are computed in whole numbers, PyTorch's in float32: trilinear values agree to rounding; nearest
// is the same for growing by whole factors up to 16, while for some 2 % of other pairs of extents PyTorch
// takes the voxel before at an output or two where i * in / out is whole.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

enum class Interpolation { trilinear, nearest };

// Extents are 1 to 32767.
struct ResizeParams {
  int64_t n = 1;
  int64_t d = 1, h = 1, w = 1;
  int64_t out_d = 1, out_h = 1, out_w = 1;
  int64_t c = 1;
  Interpolation interpolation = Interpolation::trilinear;
};

// x [n, d, h, w, c], y [n, out_d, out_h, out_w, c].
void resize_forward(Context& context, const ResizeParams& params, ConstData x, Data y);
// dx is overwritten; a gather over the outputs that read each input voxel, so no atomics.
void resize_backward(Context& context, const ResizeParams& params, ConstData dy, Data dx);

}  // namespace vesal::kernels
