// Max and average pooling of channels-last volumes.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// Triples are in the order D, H, W.
struct PoolParams {
  int64_t n = 1;
  int64_t d = 1, h = 1, w = 1;
  int64_t c = 1;
  std::array<int, 3> kernel{2, 2, 2};
  std::array<int, 3> stride{2, 2, 2};
  bool ceil_mode = false;  // a last, partial window counts; averages divide by the voxels really covered

  int64_t out(int64_t extent, int axis) const {
    const int64_t room = extent - kernel[axis] + (ceil_mode ? stride[axis] - 1 : 0);
    const int64_t count = room < 0 ? 0 : room / stride[axis] + 1;
    return ceil_mode && count == 0 && extent > 0 ? 1 : count;
  }
  int64_t out_d() const { return out(d, 0); }
  int64_t out_h() const { return out(h, 1); }
  int64_t out_w() const { return out(w, 2); }
};

// x [n, d, h, w, c], y [n, out_d, out_h, out_w, c]; index (as y): which voxel of the window won, as
// (a * kernel_h + b) * kernel_w + c (first one among equals; NaN wins), null when no backward pass follows.
void max_pool3d_forward(Context& context, const PoolParams& params, ConstData x, Data y, uint8_t* index);
// dx is overwritten. Windows may overlap. kernel volume <= 255.
void max_pool3d_backward(Context& context, const PoolParams& params, ConstData dy, const uint8_t* index, Data dx);

void avg_pool3d_forward(Context& context, const PoolParams& params, ConstData x, Data y);
void avg_pool3d_backward(Context& context, const PoolParams& params, ConstData dy, Data dx);

}  // namespace vesal::kernels
