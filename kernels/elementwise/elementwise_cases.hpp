// The sizes that elementwise functions are tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/philox.hpp"
#include "kernels/context/work.hpp"

namespace vesal::kernels {

struct ElementwiseCase {
  std::string name;
  int64_t n = 1;
  int64_t spatial = 1;
  int64_t channels = 1;
  int64_t inner() const { return spatial * channels; }
  int64_t count() const { return n * spatial * channels; }
};

// A kernel's access takes 4 elements, its block 2048, or 1024 of reductions, or 2048 packs of 4 channels in
// tiles of up to 32; a CPU vector takes 8 or 16, a slab 256 rows.
inline const std::vector<ElementwiseCase> kElementwiseCases = {
    {"one", 1, 1, 1},
    {"no_samples", 0, 3, 2},
    {"no_voxels", 2, 0, 3},
    {"no_channels", 2, 3, 0},
    {"vector_minus_one", 1, 15, 1},
    {"vector", 1, 16, 1},
    {"vector_plus_one", 1, 17, 1},
    {"block_minus_one", 1, 341, 3},
    {"block", 1, 64, 16},
    {"block_plus_one", 1, 205, 5},
    {"batch", 3, 37, 24},
    {"slabs", 2, 513, 3},
    {"wide", 2, 5, 130},
    {"pack_minus_one", 1, 3, 1},
    {"pack", 1, 4, 1},
    {"pack_plus_one", 1, 5, 1},
    {"pack_block_minus_one", 1, 89, 23},
    {"pack_block", 2, 128, 16},
    {"pack_block_plus_one", 1, 683, 3},
    {"pack_rows_minus_one", 1, 255, 32},
    {"pack_rows", 1, 256, 32},
    {"pack_rows_plus_one", 2, 257, 32},
    {"pack_tile_minus_one", 2, 65, 124},
    {"pack_tile", 2, 64, 128},
    {"pack_tile_plus_one", 2, 5, 132},
};

inline ElementwiseCase random_elementwise_case(RandomStream& random) {
  ElementwiseCase c{"", 1 + random.below(3), 1 + random.below(random.below(4) == 0 ? 600 : 20),
                    1 + random.below(random.below(4) == 0 ? 70 : 8)};
  c.name = concat("[", c.n, ", ", c.spatial, ", ", c.channels, "]");
  return c;
}

// For benchmarks: a deep level that fits a cache, the fusion network's first level at 64^3, nnU-Net's at
// 128^3.
inline const std::vector<ElementwiseCase> kElementwiseBenchmarkCases = {
    {"192_8", 1, 512, 192},
    {"24_64", 1, 262144, 24},
    {"32_128", 1, 2097152, 32},
};

// `arrays`: how many of the case's size are read or written.
inline Work elementwise_work(const ElementwiseCase& c, int arrays) {
  return {.bytes = 4.0 * static_cast<double>(c.count()) * arrays};
}

}  // namespace vesal::kernels
