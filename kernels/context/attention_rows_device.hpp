// How attention kernels lay a head's vector over threads: kDims numbers each in kSplit neighbouring threads,
// in registers, against rows of the other side in shared memory. In the portable kernel dialect, for .cu
// files.
#pragma once

#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr unsigned kFullWarp = 0xffffffffu;

template <int kDimsValue, int kSplitValue, int kThreadsValue>
struct RowLayout {
  static constexpr int kDims = kDimsValue;
  static constexpr int kSplit = kSplitValue;
  static constexpr int kThreads = kThreadsValue;
  static constexpr int kRows = kThreads / kSplit;  // of a block: queries, or keys
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kWidth = kDims * kSplit;  // head_dim padded
  static constexpr int kQuads = kDims / 4;
};

// The dimension of a thread's number i: quads of the kSplit threads interleave, so that they read different
// banks.
template <class V>
VESAL_DEVICE int dimension(int lane, int i) {
  return (i / 4 * V::kSplit + lane) * 4 + i % 4;
}

// A thread's share of the product of its row and `row`.
template <class V>
VESAL_DEVICE float dot_share(const float (&own)[V::kDims], const float4* row, int lane) {
  float sum = 0.0f;
  VESAL_UNROLL
  for (int t = 0; t < V::kQuads; ++t) {
    const float4 x = row[t * V::kSplit + lane];
    sum = fmaf(own[t * 4], x.x, sum);
    sum = fmaf(own[t * 4 + 1], x.y, sum);
    sum = fmaf(own[t * 4 + 2], x.z, sum);
    sum = fmaf(own[t * 4 + 3], x.w, sum);
  }
  return sum;
}

// Sum over the kSplit threads of a row; each gets it.
template <class V>
VESAL_DEVICE float sum_split(float value) {
  VESAL_UNROLL
  for (int distance = 1; distance < V::kSplit; distance *= 2) {
    value += __shfl_xor_sync(kFullWarp, value, distance);
  }
  return value;
}

template <class V>
VESAL_DEVICE float dot_row(const float (&own)[V::kDims], const float4* row, int lane) {
  return sum_split<V>(dot_share<V>(own, row, lane));
}

template <class V>
VESAL_DEVICE void add_row(float (&own)[V::kDims], float factor, const float4* row, int lane) {
  VESAL_UNROLL
  for (int t = 0; t < V::kQuads; ++t) {
    const float4 x = row[t * V::kSplit + lane];
    own[t * 4] = fmaf(factor, x.x, own[t * 4]);
    own[t * 4 + 1] = fmaf(factor, x.y, own[t * 4 + 1]);
    own[t * 4 + 2] = fmaf(factor, x.z, own[t * 4 + 2]);
    own[t * 4 + 3] = fmaf(factor, x.w, own[t * 4 + 3]);
  }
}

}  // namespace
}  // namespace vesal::kernels::VESAL_BACKEND
