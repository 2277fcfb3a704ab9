// Reductions within a block in a fixed order, in the portable kernel dialect; for .cu files.
#pragma once

#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {

inline constexpr unsigned kFullWarp = 0xffffffffu;

// Sum over groups of `lanes` neighbouring lanes (a power of two up to 32); every lane gets its group's sum.
// All 32 lanes of the warp must call it with the same `lanes`.
VESAL_DEVICE inline float group_sum(float value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, offset);
  }
  return value;
}

// Largest value of each group of lanes; NaN is passed over.
VESAL_DEVICE inline float group_max(float value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, offset));
  }
  return value;
}

// Thread t of the block (one-dimensional, a power of two) belongs to column t % width, width a power of two:
// every thread gets the sum over its column. scratch [blockDim.x] is free again on return. With width 1 it is
// the block's sum.
template <class T>
VESAL_DEVICE T column_sum(T value, int width, T* scratch) {
  const int t = static_cast<int>(threadIdx.x);
  scratch[t] = value;
  __syncthreads();
  for (int half = static_cast<int>(blockDim.x) / 2; half >= width; half /= 2) {
    if (t < half) {
      scratch[t] += scratch[t + half];
    }
    __syncthreads();
  }
  const T total = scratch[t & (width - 1)];
  __syncthreads();
  return total;
}

}  // namespace vesal::kernels::VESAL_BACKEND
