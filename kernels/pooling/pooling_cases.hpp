// Sizes that pooling is tested with: windows that touch, overlap or leave gaps, full and partial ones,
// channels around the 16 lanes of a vector and the 64 of a stack buffer (cpu); counts of elements, and of
// packs of four channels, around a block of 256 threads (CUDA).
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "base/philox.hpp"
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
    {"padded", {2, 4, 5, 6, 3, {3, 3, 3}, {2, 2, 2}, false, {1, 1, 1}, false}},
    {"padded_counted", {2, 4, 5, 6, 3, {3, 3, 3}, {2, 2, 2}, false, {1, 1, 1}, true}},
    {"padded_ceil", {1, 5, 6, 7, 17, {3, 2, 5}, {2, 2, 3}, true, {1, 1, 2}, false}},
    {"padded_ceil_counted", {1, 5, 6, 7, 17, {3, 2, 5}, {2, 2, 3}, true, {1, 1, 2}, true}},
    {"padded_two", {1, 3, 4, 5, 24, {2, 2, 2}, {2, 2, 2}, true, {1, 0, 1}, true}},
    {"padding_wider_than_the_volume", {2, 1, 2, 1, 2, {7, 7, 7}, {1, 2, 1}, false, {3, 3, 3}, true}},
    {"six", {1, 6, 7, 13, 2, {6, 6, 6}, {3, 1, 2}, true, {3, 2, 3}, false}},
    {"seven", {1, 7, 8, 9, 3, {7, 7, 7}, {1, 2, 2}, false, {3, 0, 1}, true}},
    {"windows_of_255", {1, 3, 5, 18, 1, {3, 5, 17}, {1, 1, 1}, false, {0, 2, 8}, true}},
    {"windows_of_256", {1, 4, 8, 9, 1, {4, 8, 8}, {1, 1, 1}, false, {2, 0, 4}, false}},
    {"adaptive_one", {2, 3, 4, 5, 7, {}, {}, false, {}, false, {1, 1, 1}}},
    {"adaptive_same", {1, 3, 4, 5, 2, {}, {}, false, {}, false, {3, 4, 5}}},
    {"adaptive_broken", {2, 7, 5, 11, 65, {}, {}, false, {}, false, {3, 2, 4}}},
    {"adaptive_more_than_voxels", {1, 2, 3, 1, 3, {}, {}, false, {}, false, {5, 4, 3}}},
    {"adaptive_mixed", {1, 9, 2, 6, 16, {}, {}, false, {}, false, {2, 5, 1}}},
    {"outputs_255", {1, 1, 2, 510, 1, {1, 2, 2}, {1, 2, 2}, false}},
    {"outputs_256", {1, 1, 2, 512, 1, {1, 2, 2}, {1, 2, 2}, false}},
    {"outputs_257", {1, 1, 2, 514, 1, {1, 2, 2}, {1, 2, 2}, false}},
    {"packs_255", {1, 1, 2, 510, 4, {1, 2, 2}, {1, 2, 2}, false}},
    {"packs_256", {1, 1, 2, 512, 4, {1, 2, 2}, {1, 2, 2}, false}},
    {"packs_257", {1, 1, 2, 514, 4, {1, 2, 2}, {1, 2, 2}, false}},
    {"packs_overlapping", {2, 5, 6, 7, 8, {3, 3, 3}, {2, 1, 2}, true, {1, 1, 1}, true}},
    {"packs_windows_of_256", {1, 4, 8, 9, 4, {4, 8, 8}, {1, 1, 1}, false, {2, 0, 4}, false}},
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

inline PoolParams random_pool_params(RandomStream& random) {
  PoolParams p;
  p.n = 1 + random.below(2);
  p.c = 1 + random.below(random.below(4) == 0 ? 70 : 5);
  p.d = 1 + random.below(7);
  p.h = 1 + random.below(7);
  p.w = 1 + random.below(9);
  if (random.below(3) == 0) {
    p.adaptive = {1 + random.below(p.d + 2), 1 + random.below(p.h + 2), 1 + random.below(p.w + 2)};
    return p;
  }
  for (size_t axis = 0; axis < 3; ++axis) {
    const int64_t extent = axis == 0 ? p.d : axis == 1 ? p.h : p.w;
    p.kernel[axis] = 1 + static_cast<int>(random.below(7));
    p.stride[axis] = 1 + static_cast<int>(random.below(4));
    // Enough padding for a window to fit, where there may be as much.
    p.padding[axis] = static_cast<int>(random.below(p.kernel[axis] / 2 + 1));
    if (extent + 2 * p.padding[axis] < p.kernel[axis]) {
      p.kernel[axis] = static_cast<int>(extent) + 2 * p.padding[axis];
      p.padding[axis] = std::min(p.padding[axis], p.kernel[axis] / 2);
    }
  }
  p.ceil_mode = random.bernoulli(0.5f);
  p.count_include_pad = random.bernoulli(0.5f);
  return p;
}

inline std::string describe(const PoolParams& p) {
  return concat("[", p.n, ", ", p.d, ", ", p.h, ", ", p.w, ", ", p.c, "], window ", p.kernel[0], " x ",
                p.kernel[1], " x ", p.kernel[2], ", strides ", p.stride[0], " ", p.stride[1], " ",
                p.stride[2], ", padding ", p.padding[0], " ", p.padding[1], " ", p.padding[2],
                p.ceil_mode ? ", ceil" : "", p.count_include_pad ? ", padding counted" : "", ", adaptive ",
                p.adaptive[0], " ", p.adaptive[1], " ", p.adaptive[2]);
}

}  // namespace vesal::kernels
