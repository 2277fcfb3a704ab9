// What conv3d's kernels without tiles share (depthwise and thin groups): a thread takes a run of voxels along
// w, so that what it reads for one of them serves its neighbours, and neighbouring threads take neighbouring
// channels.
#pragma once

#include <algorithm>

#include "kernels/context/device_loops.hpp"
#include "kernels/context/quads.hpp"
#include "kernels/conv3d/conv3d_geometry.hpp"
#include "kernels/linear/gemm_device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kLineThreads = 256;

VESAL_DEVICE inline bool inside(int at, int extent) {
  return static_cast<unsigned>(at) < static_cast<unsigned>(extent);
}

VESAL_DEVICE inline void add_product(float4& sum, const float4& a, const float4& b) {
  sum.x = fmaf(a.x, b.x, sum.x);
  sum.y = fmaf(a.y, b.y, sum.y);
  sum.z = fmaf(a.z, b.z, sum.z);
  sum.w = fmaf(a.w, b.w, sum.w);
}

// The smallest tile that covers `count` with as few tiles as those of at most `most` do.
inline int even_tile(int64_t count, int64_t most) {
  return static_cast<int>(ceil_div(count, ceil_div(count, std::max<int64_t>(most, 1))));
}

// What a block covers: columns (of channels), lines in h and d, and runs in w. Lines that share what they
// read sit together, for the first-level cache.
struct BlockTile {
  int run;  // voxels of a run
  int columns, runs, h, d;
  int tiles_w, tiles_h, tiles_d;

  int threads() const { return columns * runs * h * d; }
};

inline BlockTile block_tile(const Triple& target, int64_t n, int64_t columns, int run) {
  const int64_t runs = ceil_div(target.w, run);
  // Small volumes in small blocks, to have one for every multiprocessor.
  const int64_t budget = n * target.d * target.h * runs * columns < 1 << 17 ? kLineThreads / 2 : kLineThreads;
  BlockTile tile{};
  tile.run = run;
  tile.columns = even_tile(columns, 16);
  tile.h = even_tile(target.h, 4);
  tile.d = even_tile(target.d, 2);
  tile.runs = even_tile(runs, budget / (tile.columns * tile.h * tile.d));
  tile.h = even_tile(target.h, budget / (tile.columns * tile.runs * tile.d));
  tile.d = even_tile(target.d, budget / (tile.columns * tile.runs * tile.h));
  tile.tiles_w = static_cast<int>(ceil_div(runs, tile.runs));
  tile.tiles_h = static_cast<int>(ceil_div(target.h, tile.h));
  tile.tiles_d = static_cast<int>(ceil_div(target.d, tile.d));
  return tile;
}

inline Dim3 tile_grid(const BlockTile& tile, int64_t n, int64_t columns) {
  return {n * tile.tiles_d * tile.tiles_h * tile.tiles_w, ceil_div(columns, tile.columns)};
}

// A thread's column and the first voxel of its run, which may lie outside the target.
struct RunPlace {
  int column, n, d, h, w;
};

// Interleaved runs take every tile.runs-th voxel, so that neighbouring threads read neighbouring voxels;
// others take consecutive ones.
template <bool kInterleaved>
VESAL_DEVICE RunPlace place_in_tile(const BlockTile& tile) {
  int thread = static_cast<int>(threadIdx.x);
  int block = static_cast<int>(blockIdx.x);
  RunPlace place{};
  place.column = static_cast<int>(blockIdx.y) * tile.columns + thread % tile.columns;
  thread /= tile.columns;
  int lane = 0;
  if (kInterleaved) {
    lane = thread % tile.runs;
    thread /= tile.runs;
  }
  place.h = block % tile.tiles_h * tile.h + thread % tile.h;
  block /= tile.tiles_h;
  thread /= tile.h;
  place.d = block % tile.tiles_d * tile.d + thread % tile.d;
  block /= tile.tiles_d;
  thread /= tile.d;
  place.w = block % tile.tiles_w * tile.runs * tile.run + (kInterleaved ? lane : thread * tile.run);
  place.n = block / tile.tiles_w;
  return place;
}

// Number of a line (n, d, h) among the lines of a volume.
VESAL_DEVICE inline int64_t line_of(int n, int d, int h, const Triple& extent) {
  return (int64_t{n} * extent.d + d) * extent.h + h;
}

// ---- Sums over all runs of the target: slabs of consecutive runs for the blocks, in steps of `segments` for
// the threads of a block ----

struct RunCount {
  int w, h, d, n;  // runs in a line, lines, planes, samples
};

// One run, or a step from one to another, as digits in this system of runs.
struct RunDigits {
  int w, h, d, n;
};

VESAL_HOST_DEVICE inline RunDigits digits_of(int64_t number, const RunCount& count) {
  auto q = static_cast<unsigned>(number);
  RunDigits digits{};
  digits.w = static_cast<int>(q % static_cast<unsigned>(count.w));
  q /= static_cast<unsigned>(count.w);
  digits.h = static_cast<int>(q % static_cast<unsigned>(count.h));
  q /= static_cast<unsigned>(count.h);
  digits.d = static_cast<int>(q % static_cast<unsigned>(count.d));
  digits.n = static_cast<int>(q / static_cast<unsigned>(count.d));
  return digits;
}

// Adds a step without a division.
VESAL_DEVICE inline void advance(RunDigits& at, const RunDigits& step, const RunCount& count) {
  at.w += step.w;
  int carry = at.w >= count.w ? 1 : 0;
  at.w -= carry * count.w;
  at.h += step.h + carry;
  carry = at.h >= count.h ? 1 : 0;
  at.h -= carry * count.h;
  at.d += step.d + carry;
  carry = at.d >= count.d ? 1 : 0;
  at.d -= carry * count.d;
  at.n += step.n + carry;
}

// How the sums are cut, from the sizes only.
struct RunSlabs {
  RunCount count;
  int64_t runs;
  int slabs;
  int columns;   // of a block
  int taps;      // of a block
  int segments;  // of a block: threads that share columns and taps
  RunDigits step;

  int threads() const { return columns * taps * segments; }
};

// `run`: voxels of a run; `products`: blocks for one slab.
inline RunSlabs run_slabs(const Triple& target, int64_t n, int run, int columns, int taps, int64_t products) {
  RunSlabs s{};
  s.count = {static_cast<int>(ceil_div(target.w, run)), target.h, target.d, static_cast<int>(n)};
  s.runs = int64_t{s.count.w} * s.count.h * s.count.d * s.count.n;
  s.columns = columns;
  s.taps = taps;
  s.segments = std::max(kLineThreads / (columns * taps), 1);
  // Four waves of blocks on the largest GPU, and four runs a thread at least.
  s.slabs = static_cast<int>(
      std::clamp<int64_t>(std::min(1024 / products, s.runs / (4 * s.segments)), 1, kMaxSlabs));
  s.step = digits_of(s.segments, s.count);
  return s;
}

// dweight (+)= the sum over slabs, for column_finish_kernel.
struct AddUpSlabs {
  float* dweight;
  GradMode mode;

  VESAL_DEVICE void finish(int64_t, int64_t column, const float* sums) const {
    dweight[column] = mode == GradMode::accumulate ? dweight[column] + sums[0] : sums[0];
  }
};

inline void add_up_slabs(Context& context, int slabs, int64_t weights, const float* partials, float* dweight,
                         GradMode mode) {
  constexpr int kWidth = 32;
  launch(context.stream(), {.grid = ceil_div(weights, kWidth), .block = kLoopThreads},
         column_finish_kernel<1, AddUpSlabs>, int64_t{slabs}, weights, kWidth, partials,
         AddUpSlabs{.dweight = dweight, .mode = mode});
}

}  // namespace
}  // namespace vesal::kernels::VESAL_BACKEND
