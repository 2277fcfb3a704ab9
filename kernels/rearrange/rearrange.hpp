// Moving voxels and channels without arithmetic: pad and crop, concatenation and split, routing of input
// channels. All tensors are stored as float32, bf16 or f16 (kernels/context/storage.hpp).
#pragma once

#include <array>
#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// y[n, z, y, x, c] = x[n, z - low_d, y - low_h, x - low_w, c], `value` outside: a positive low pads, a
// negative crops.
struct PadCropParams {
  int64_t n = 1;
  int64_t d = 1, h = 1, w = 1;
  int64_t out_d = 1, out_h = 1, out_w = 1;
  int64_t c = 1;
  std::array<int64_t, 3> low{0, 0, 0};  // D, H, W
  float value = 0.0f;
};
void pad_crop_forward(Context& context, const PadCropParams& params, ConstData x, Data y);
// dx is overwritten: zero where the forward pass cropped.
void pad_crop_backward(Context& context, const PadCropParams& params, ConstData dy, Data dx);

// Concatenation and split on channels: copies `count` channels of every row.
// target[row, target_offset + i] (=, or += with GradMode::accumulate) source[row, source_offset + i], i <
// count.
struct CopyChannelsParams {
  int64_t rows = 1;
  int64_t source_channels = 1, source_offset = 0;
  int64_t target_channels = 1, target_offset = 0;
  int64_t count = 1;
};
void copy_channels(Context& context, const CopyChannelsParams& params, ConstData source, Data target,
                   GradMode mode);

// y[n, voxel, k] = x[n, voxel, source[n, k]], 0 where source is -1. x [n, voxels, channels], y [n, voxels,
// out]; source [n, out] in device memory. A channel that no output names is never read (it may be NaN). No
// backward pass: this routes inputs.
void route_channels(Context& context, int64_t n, int64_t voxels, int64_t channels, int64_t out, ConstData x,
                    const int32_t* source, Data y);

}  // namespace vesal::kernels
