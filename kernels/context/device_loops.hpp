// The loops that simple kernels share, in the portable kernel dialect; for .cu files. A functor in plain data
// says what happens to an element; the loop says which thread does it.
#pragma once

#include <algorithm>

#include "base/size.hpp"
#include "kernels/context/block_reduce.hpp"
#include "kernels/context/slabs.hpp"

namespace vesal::kernels::VESAL_BACKEND {

inline constexpr int kLoopThreads = 256;
inline constexpr int kMapPerThread = 4;

// f(i) for i < count: neighbouring threads take neighbouring elements, four independent ones each.
template <class F>
VESAL_KERNEL void map_kernel(int64_t count, F f) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kLoopThreads * kMapPerThread) + threadIdx.x;
  VESAL_UNROLL
  for (int k = 0; k < kMapPerThread; ++k) {
    const int64_t i = first + k * kLoopThreads;
    if (i < count) {
      f(i);
    }
  }
}

template <class F>
void launch_map(StreamHandle stream, int64_t count, const F& f) {
  launch(stream,
         {.grid = {ceil_div(count, kLoopThreads * kMapPerThread), 1, 1}, .block = {kLoopThreads, 1, 1}},
         map_kernel<F>, count, f);
}

// Threads that share the channels of a row: the smallest power of two that covers them, at most a warp.
inline int column_width(int64_t channels) {
  int width = 1;
  while (width < 32 && width < channels) {
    width *= 2;
  }
  return width;
}

// [n, rows, channels]: block (slab, tile of channels, sample); thread t works on column t % width and on
// every (256 / width)-th row, so that a warp reads neighbouring channels.
//
// F::prepare(sample, column) returns what is the same for a whole column; F::apply(state, row, i) does one
// element, row = the row within [n * rows], i = row * channels + column.
template <class F>
VESAL_KERNEL void column_map_kernel(int64_t rows, int64_t channels, int width, F f) {
  const int64_t sample = blockIdx.z;
  const int64_t column =
      static_cast<int64_t>(blockIdx.y) * width + (static_cast<int>(threadIdx.x) & (width - 1));
  if (column >= channels) {
    return;
  }
  const auto state = f.prepare(sample, column);
  const int step = kLoopThreads / width;
  const int64_t end = sample * rows + slab_begin(rows, gridDim.x, static_cast<int64_t>(blockIdx.x) + 1);
  for (int64_t row =
           sample * rows + slab_begin(rows, gridDim.x, blockIdx.x) + static_cast<int>(threadIdx.x) / width;
       row < end; row += step) {
    f.apply(state, row, row * channels + column);
  }
}

template <class F>
void launch_column_map(StreamHandle stream, int64_t n, int64_t rows, int64_t channels, const F& f) {
  const int width = column_width(channels);
  // More and smaller pieces than a reduction takes: nothing is left behind per piece.
  const int64_t pieces =
      std::clamp<int64_t>(ceil_div(rows * width, kLoopThreads * kMapPerThread), 1, int64_t{1} << 20);
  launch(
      stream,
      {.grid = {n > 0 && rows > 0 ? pieces : 0, ceil_div(channels, width), n}, .block = {kLoopThreads, 1, 1}},
      column_map_kernel<F>, rows, channels, width, f);
}

// Rows that a thread reads before it adds them up: F::kRowsAhead where F has it, for those that wait for
// memory only; otherwise the compiler's choice.
template <class F>
constexpr int rows_ahead() {
  if constexpr (requires { F::kRowsAhead; }) {
    return F::kRowsAhead;
  } else {
    return 1;
  }
}

// partials [n, slabs, kSums, channels] = sums over the rows of each slab (grid.x = slab_count(rows)).
// F::prepare as above; F::add(state, row, i, sums) adds one element's terms.
template <int kSums, class F>
VESAL_KERNEL void column_partials_kernel(int64_t rows, int64_t channels, int width, F f,
                                         float* VESAL_RESTRICT partials) {
  VESAL_SHARED(float, scratch, [kLoopThreads]);
  const int64_t sample = blockIdx.z;
  const int64_t column =
      static_cast<int64_t>(blockIdx.y) * width + (static_cast<int>(threadIdx.x) & (width - 1));
  float sums[kSums] = {};
  if (column < channels) {
    const auto state = f.prepare(sample, column);
    const int step = kLoopThreads / width;
    const int64_t end = sample * rows + slab_begin(rows, gridDim.x, static_cast<int64_t>(blockIdx.x) + 1);
    int64_t row =
        sample * rows + slab_begin(rows, gridDim.x, blockIdx.x) + static_cast<int>(threadIdx.x) / width;
    if constexpr (constexpr int kAhead = rows_ahead<F>(); kAhead > 1) {
      for (; row + (kAhead - 1) * step < end; row += kAhead * step) {
        VESAL_UNROLL
        for (int k = 0; k < kAhead; ++k) {
          f.add(state, row + k * step, (row + k * step) * channels + column, sums);
        }
      }
    }
    for (; row < end; row += step) {
      f.add(state, row, row * channels + column, sums);
    }
  }
  float* target = partials + (sample * gridDim.x + blockIdx.x) * kSums * channels + column;
  VESAL_UNROLL
  for (int k = 0; k < kSums; ++k) {
    const float total = column_sum(sums[k], width, scratch);
    if (static_cast<int>(threadIdx.x) < width && column < channels) {
      target[k * channels] = total;
    }
  }
}

// F::finish(sample, column, sums) with the slabs' sums added: one block for each tile of channels and sample.
template <int kSums, class F>
VESAL_KERNEL void column_finish_kernel(int64_t slabs, int64_t channels, int width,
                                       const float* VESAL_RESTRICT partials, F f) {
  VESAL_SHARED(float, scratch, [kLoopThreads]);
  const int64_t sample = blockIdx.y;
  const int64_t column =
      static_cast<int64_t>(blockIdx.x) * width + (static_cast<int>(threadIdx.x) & (width - 1));
  float sums[kSums] = {};
  if (column < channels) {
    for (int64_t slab = static_cast<int>(threadIdx.x) / width; slab < slabs; slab += kLoopThreads / width) {
      VESAL_UNROLL
      for (int k = 0; k < kSums; ++k) {
        sums[k] += partials[((sample * slabs + slab) * kSums + k) * channels + column];
      }
    }
  }
  VESAL_UNROLL
  for (int k = 0; k < kSums; ++k) {
    sums[k] = column_sum(sums[k], width, scratch);
  }
  if (static_cast<int>(threadIdx.x) < width && column < channels) {
    f.finish(sample, column, sums);
  }
}

// Both of the above; F has prepare, add and finish.
template <int kSums, class F>
void launch_column_sums(StreamHandle stream, int64_t n, int64_t rows, int64_t channels, float* partials,
                        const F& f) {
  const int width = column_width(channels);
  const int64_t slabs = slab_count(rows);
  const int64_t tiles = ceil_div(channels, width);
  launch(stream, {.grid = {slabs, tiles, n}, .block = {kLoopThreads, 1, 1}}, column_partials_kernel<kSums, F>,
         rows, channels, width, f, partials);
  launch(stream, {.grid = {tiles, n, 1}, .block = {kLoopThreads, 1, 1}}, column_finish_kernel<kSums, F>,
         slabs, channels, width, static_cast<const float*>(partials), f);
}

}  // namespace vesal::kernels::VESAL_BACKEND
