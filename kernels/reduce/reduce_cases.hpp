// The sizes that reductions are tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/philox.hpp"
#include "kernels/context/work.hpp"

namespace vesal::kernels {

struct ReduceCase {
  std::string name;
  int64_t n = 1;
  int64_t spatial = 1;
  int64_t channels = 1;
};

// A slab holds about 256 rows, a block 256 threads, a tile of columns at most 32 channels.
inline const std::vector<ReduceCase> kReduceCases = {
    {"one", 1, 1, 1},
    {"slab_minus_one", 1, 255, 1},
    {"slab", 1, 256, 2},
    {"slab_plus_one", 1, 257, 3},
    {"tile_minus_one", 2, 33, 31},
    {"tile", 2, 33, 32},
    {"tile_plus_one", 2, 33, 33},
    {"wide", 1, 7, 200},
    {"small_batch", 3, 64, 12},
    {"long", 1, 5000, 1},
    {"two_slabs", 2, 512, 24},
    {"wide_row_tail", 1, 300, 5},
    {"no_samples", 0, 7, 3},
    {"no_rows", 2, 0, 5},
};

// For benchmarks: the features and the logits of a U-Net, and the channels that a squeeze-and-excitation
// block averages.
inline const std::vector<ReduceCase> kReduceBenchmarkCases = {
    {"32_at_64", 1, 262144, 32},
    {"4_at_128", 1, 2097152, 4},
    {"320_at_8", 2, 512, 320},
};

// `smaller` is the number of elements on the other side of the sum.
inline Work reduce_work(const ReduceCase& c, int64_t smaller) {
  return {.bytes = 4.0 * static_cast<double>(c.n * c.spatial * c.channels + smaller)};
}

inline ReduceCase random_reduce_case(RandomStream& random) {
  ReduceCase c;
  c.n = 1 + random.below(4);
  c.spatial = 1 + random.below(random.below(4) == 0 ? 600 : 30);
  c.channels = 1 + random.below(random.below(4) == 0 ? 70 : 6);
  c.name = concat("[", c.n, ", ", c.spatial, ", ", c.channels, "]");
  return c;
}

}  // namespace vesal::kernels
