// Max and average pooling of channels-last volumes, as PyTorch's max_pool3d and avg_pool3d without padding.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// Triples are in the order D, H, W. A window holds at most 255 voxels.
struct PoolParams {
  int64_t n = 1;
  int64_t d = 1, h = 1, w = 1;
  int64_t c = 1;
  std::array<int, 3> kernel{2, 2, 2};
  std::array<int, 3> stride{2, 2, 2};
  bool ceil_mode = false;  // a last, partial window counts; averages divide by the voxels really covered

  // Windows along an axis of `extent` voxels. A partial window begins inside the volume.
  int64_t out(int64_t extent, int axis) const {
    if (ceil_mode) {
      const int64_t past_first = extent - kernel[axis];
      const int64_t count = past_first <= 0 ? 1 : (past_first + stride[axis] - 1) / stride[axis] + 1;
      return extent <= 0 ? 0 : (count - 1) * stride[axis] >= extent ? count - 1 : count;
    }
    return extent < kernel[axis] ? 0 : (extent - kernel[axis]) / stride[axis] + 1;
  }
  int64_t out_d() const { return out(d, 0); }
  int64_t out_h() const { return out(h, 1); }
  int64_t out_w() const { return out(w, 2); }
};

// x [n, d, h, w, c], y [n, out_d, out_h, out_w, c]; index (as y): which voxel of the window won, as
// (a * kernel_h + b) * kernel_w + c (the first one among equals; the first NaN, if there is one), null when
// no backward pass follows.
void max_pool3d_forward(Context& context, const PoolParams& params, ConstData x, Data y, uint8_t* index);
// dx is overwritten; voxels that no window covers get 0. Windows may overlap. A gather, so no atomics.
void max_pool3d_backward(Context& context, const PoolParams& params, ConstData dy, const uint8_t* index,
                         Data dx);

void avg_pool3d_forward(Context& context, const PoolParams& params, ConstData x, Data y);
void avg_pool3d_backward(Context& context, const PoolParams& params, ConstData dy, Data dx);

}  // namespace vesal::kernels
