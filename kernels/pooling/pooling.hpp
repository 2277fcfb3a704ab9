// Max and average pooling of channels-last volumes, as PyTorch's max_pool3d, avg_pool3d, adaptive_max_pool3d
// and adaptive_avg_pool3d.
// x, y, dy and dx are stored as float32, bf16 or f16 (kernels/context/storage.hpp); what overlapping windows
// add to an element of dx is summed in float32 and rounded once.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// Triples are in the order D, H, W. A window, and a volume along an axis, has at most 2^30 voxels; in
// adaptive pooling extents are at most 32767.
struct PoolParams {
  int64_t n = 1;
  int64_t d = 1, h = 1, w = 1;
  int64_t c = 1;
  std::array<int, 3> kernel{2, 2, 2};
  std::array<int, 3> stride{2, 2, 2};
  bool ceil_mode = false;          // a last, partial window counts
  std::array<int, 3> padding{};    // at most half the kernel; never wins, and adds nothing to a sum
  bool count_include_pad = false;  // averages divide by the voxels and the padding under the window
  // Output extents of adaptive pooling: window o reaches from floor(o in / out) to ceil((o + 1) in / out),
  // and kernel, stride and padding are not used. All zero for windows of a fixed size.
  std::array<int64_t, 3> adaptive{};

  bool is_adaptive() const { return adaptive[0] != 0; }

  // Windows along an axis of `extent` voxels. A partial window begins inside the volume or the padding before
  // it.
  int64_t out(int64_t extent, int axis) const {
    const auto a = static_cast<size_t>(axis);
    if (is_adaptive() || extent <= 0) {
      return extent <= 0 ? 0 : adaptive[a];
    }
    const int64_t past_first = extent + 2 * padding[a] - kernel[a];
    if (ceil_mode) {
      const int64_t count = past_first <= 0 ? 1 : (past_first + stride[a] - 1) / stride[a] + 1;
      return (count - 1) * stride[a] >= extent + padding[a] ? count - 1 : count;
    }
    return past_first < 0 ? 0 : past_first / stride[a] + 1;
  }
  int64_t out_d() const { return out(d, 0); }
  int64_t out_h() const { return out(h, 1); }
  int64_t out_w() const { return out(w, 2); }

  // How max pooling stores its index: u8 for fixed windows of at most 255 voxels, else i32.
  DType index_type() const {
    const int64_t volume = int64_t{1} * kernel[0] * kernel[1] * kernel[2];
    return !is_adaptive() && volume <= 255 ? DType::u8 : DType::i32;
  }
};

// x [n, d, h, w, c], y [n, out_d, out_h, out_w, c]; index (as y, of index_type()): which voxel of the window
// won, as (a * extent_h + b) * extent_w + c with the window's own extents (the first one among equals; the
// first NaN, if there is one), null when no backward pass follows.
void max_pool3d_forward(Context& context, const PoolParams& params, ConstData x, Data y, Data index);
// dx is overwritten; voxels that no window covers get 0. Windows may overlap. A gather, so no atomics.
void max_pool3d_backward(Context& context, const PoolParams& params, ConstData dy, ConstData index, Data dx);

void avg_pool3d_forward(Context& context, const PoolParams& params, ConstData x, Data y);
void avg_pool3d_backward(Context& context, const PoolParams& params, ConstData dy, Data dx);

}  // namespace vesal::kernels
