// Sizes that pooling is tested with: windows that touch, overlap or leave gaps, full and partial ones,
// channels around the 16 lanes of a vector and the 64 of a stack buffer (cpu); element counts around a block
// of 256 threads (CUDA).
#pragma once

#include <string>
#include <vector>

#include "kernels/context/work.hpp"
#include "kernels/pooling/pooling.hpp"

namespace vesal::kernels {

struct PoolCase {
  std::string name;
  PoolParams params;
};

inline const std::vector<PoolCase> kPoolCases = {
    {"one_voxel", {1, 1, 1, 1, 1, {1, 1, 1}, {1, 1, 1}, false}},
    {"even", {2, 4, 6, 8, 3, {2, 2, 2}, {2, 2, 2}, false}},
    {"odd_floor", {2, 5, 7, 3, 5, {2, 2, 2}, {2, 2, 2}, false}},
    {"odd_ceil", {2, 5, 7, 3, 5, {2, 2, 2}, {2, 2, 2}, true}},
    {"flat", {2, 1, 6, 7, 4, {1, 2, 2}, {1, 2, 2}, false}},
    {"channels_15", {1, 2, 4, 4, 15, {2, 2, 2}, {2, 2, 2}, false}},
    {"channels_16", {1, 2, 4, 4, 16, {2, 2, 2}, {2, 2, 2}, false}},
    {"channels_17", {1, 3, 4, 4, 17, {2, 2, 2}, {2, 2, 2}, true}},
    {"channels_24", {1, 4, 4, 6, 24, {2, 2, 2}, {2, 2, 2}, false}},
    {"channels_63", {1, 2, 3, 4, 63, {2, 2, 2}, {2, 2, 2}, true}},
    {"channels_64", {1, 2, 3, 4, 64, {2, 2, 2}, {2, 2, 2}, true}},
    {"channels_65", {1, 2, 3, 4, 65, {2, 2, 2}, {2, 2, 2}, true}},
    {"overlapping", {2, 7, 5, 9, 3, {3, 3, 3}, {2, 1, 2}, false}},
    {"overlapping_ceil", {1, 6, 6, 8, 2, {3, 3, 3}, {2, 2, 2}, true}},
    {"gaps", {2, 7, 8, 9, 2, {2, 1, 2}, {3, 2, 4}, false}},
    {"gaps_ceil", {1, 7, 8, 9, 2, {1, 2, 3}, {4, 4, 4}, true}},
    {"four_four_four", {1, 8, 8, 8, 6, {4, 4, 4}, {4, 4, 4}, false}},
    {"whole_volume", {2, 3, 4, 5, 7, {3, 4, 5}, {3, 4, 5}, false}},
    {"window_beyond_the_volume_ceil", {1, 2, 3, 1, 4, {4, 4, 4}, {4, 4, 4}, true}},
    {"largest_window", {1, 3, 5, 17, 2, {3, 5, 17}, {1, 1, 1}, false}},
    {"outputs_255", {1, 1, 2, 510, 1, {1, 2, 2}, {1, 2, 2}, false}},
    {"outputs_256", {1, 1, 2, 512, 1, {1, 2, 2}, {1, 2, 2}, false}},
    {"outputs_257", {1, 1, 2, 514, 1, {1, 2, 2}, {1, 2, 2}, false}},
};

// For benchmarks: a U-Net's first two levels, and the constant token grids of VeloxSeg.
inline const std::vector<PoolCase> kPoolBenchmarkCases = {
    {"32_128", {1, 128, 128, 128, 32, {2, 2, 2}, {2, 2, 2}, false}},
    {"64_64", {1, 64, 64, 64, 64, {2, 2, 2}, {2, 2, 2}, false}},
    {"16_24_kernel_4", {1, 24, 24, 24, 16, {4, 4, 4}, {4, 4, 4}, false}},
    {"24_64_overlapping", {1, 64, 64, 64, 24, {3, 3, 3}, {2, 2, 2}, true}},
};

// With `index` the byte per output that max pooling writes, or reads on its way back.
inline Work pooling_work(const PoolParams& p, bool index) {
  const auto outputs = static_cast<double>(p.n * p.out_d() * p.out_h() * p.out_w() * p.c);
  return {.bytes =
              4.0 * (static_cast<double>(p.n * p.d * p.h * p.w * p.c) + outputs) + (index ? outputs : 0)};
}

}  // namespace vesal::kernels
