// A row of values in the registers of the lanes that share it, so that a softmax reads it once; in the
// portable kernel dialect, for .cu files.
#pragma once

#include "kernels/context/block_reduce.hpp"
#include "kernels/context/quads.hpp"

namespace vesal::kernels::VESAL_BACKEND {

// Which values a lane has: where they come in fours, four neighbours at a time, otherwise every lanes-th.
// That depends on the length alone: sums have the same order whether or not rows are aligned.
struct RowShare {
  int first, step, lanes;

  VESAL_DEVICE RowShare(int length, int lane, int lanes_)
      : first(length % 4 == 0 ? lane * 4 : lane), step(length % 4 == 0 ? 1 : lanes_), lanes(lanes_) {}
  // The place in the row of the lane's j-th value.
  VESAL_DEVICE int of(int j) const { return first + j / 4 * 4 * lanes + j % 4 * step; }
};

// values: the lane's of a row, -infinity at `length` or beyond. Returns the row's largest; all lanes of a
// warp call it together. aligned: four neighbours can be read at once.
template <int kValues, class P>
VESAL_DEVICE float load_row(const P& row, const RowShare& share, int length, bool aligned,
                            float (&values)[kValues]) {
  float largest = -INFINITY;
  VESAL_UNROLL
  for (int q = 0; q < kValues; q += 4) {
    if (aligned && share.of(q) < length) {
      const float4 four = load4(row + share.of(q));
      values[q] = four.x;
      values[q + 1] = four.y;
      values[q + 2] = four.z;
      values[q + 3] = four.w;
    } else {
      VESAL_UNROLL
      for (int j = q; j < q + 4; ++j) {
        values[j] = share.of(j) < length ? row[share.of(j)] : -INFINITY;
      }
    }
    VESAL_UNROLL
    for (int j = q; j < q + 4; ++j) {
      largest = fmaxf(largest, values[j]);
    }
  }
  return group_max(largest, share.lanes);
}

// The lane's four values from the q-th on.
template <class P>
VESAL_DEVICE void store_four(const P& row, const RowShare& share, int q, int length, bool aligned,
                             const float (&values)[4]) {
  if (aligned && share.of(q) < length) {
    store4(row + share.of(q), make_float4(values[0], values[1], values[2], values[3]));
    return;
  }
  VESAL_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (share.of(q + i) < length) {
      row[share.of(q + i)] = values[i];
    }
  }
}

}  // namespace vesal::kernels::VESAL_BACKEND
