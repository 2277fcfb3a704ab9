// Sizes that pooling by regions is tested with. Tiles to be one short of, equal to and one beyond: 32 voxels
// a step of a warp and 1024 a chunk (CUDA), 1024 regions of the scan (CUDA), channels of 8, 16 and 64 (CPU),
// of 32, or 8 of few regions (CUDA), voxels of a region around sixteen for each of 32 and of 1024 threads
// (CUDA: a block is larger from there on, and no more).
#pragma once

#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/region_pool/region_pool.hpp"

namespace vesal::kernels {

struct RegionCase {
  std::string name;
  RegionParams params;
  int64_t channels = 1;
};

inline const std::vector<RegionCase> kRegionCases = {
    {"one_voxel", {1, 1, 1}, 1},         {"one_region_of_three_samples", {3, 7, 1}, 5},
    {"voxels_31", {2, 31, 4}, 7},        {"voxels_32", {1, 32, 4}, 8},
    {"voxels_33", {2, 33, 5}, 9},        {"voxels_1023", {1, 1023, 31}, 15},
    {"voxels_1024", {2, 1024, 32}, 16},  {"voxels_1025", {1, 1025, 33}, 17},
    {"voxels_2049", {2, 2049, 9}, 3},    {"channels_31", {1, 50, 6}, 31},
    {"channels_32", {2, 50, 6}, 32},     {"channels_33", {1, 50, 6}, 33},
    {"channels_63", {1, 20, 3}, 63},     {"channels_64", {1, 20, 3}, 64},
    {"channels_65", {2, 20, 3}, 65},     {"regions_1023", {1, 300, 1023}, 2},
    {"regions_1024", {1, 300, 1024}, 2}, {"regions_1025", {2, 300, 1025}, 2},
    {"large_regions", {1, 3000, 2}, 4},  {"channels_7", {1, 90, 3}, 7},
    {"channels_8", {2, 90, 3}, 8},       {"channels_9", {1, 90, 3}, 9},
    {"channels_12", {1, 90, 3}, 12},     {"channels_36", {2, 90, 3}, 36},
    {"many_of_36", {1, 900, 130}, 36},   {"many_of_37", {1, 900, 130}, 37},
    {"one_warp", {1, 512, 1}, 4},        {"beyond_one_warp", {1, 513, 1}, 4},
    {"full_block", {1, 8192, 1}, 8},     {"beyond_full_block", {1, 8193, 1}, 8},
    {"rows_127", {1, 300, 127}, 12},     {"rows_128", {1, 300, 128}, 12},
};

// Labels in neighbouring runs as supervoxels have them, some of them outside on either side; about one region
// in four has no voxel.
inline std::vector<int32_t> random_labels(const RegionParams& p, uint64_t seed) {
  RandomStream random(seed, 0, 0);
  std::vector<int32_t> labels;
  for (int64_t s = 0; s < p.n; ++s) {
    int64_t left = 0, label = 0;
    for (int64_t v = 0; v < p.voxels; ++v, --left) {
      if (left <= 0) {
        left = 1 + random.below(6);
        label = random.below(8) == 0
                    ? (random.below(2) == 0 ? -1 - random.below(9) : p.regions + random.below(9))
                    : random.below(p.regions);
        label = label >= 0 && label < p.regions && label % 4 == 3 ? label - 1 : label;
      }
      labels.push_back(static_cast<int32_t>(label));
    }
  }
  return labels;
}

// A cube of voxels cut into cubes of block^3, its regions.
struct RegionBenchmarkCase {
  std::string name;
  int64_t extent = 1;
  int64_t block = 1;  // divides extent
  int64_t channels = 1;

  RegionParams params() const {
    const int64_t blocks = extent / block;
    return {1, extent * extent * extent, blocks * blocks * blocks};
  }
  std::vector<int32_t> labels() const {
    const int64_t blocks = extent / block;
    std::vector<int32_t> all;
    for (int64_t z = 0; z < extent; ++z) {
      for (int64_t y = 0; y < extent; ++y) {
        for (int64_t x = 0; x < extent; ++x) {
          all.push_back(static_cast<int32_t>((z / block * blocks + y / block) * blocks + x / block));
        }
      }
    }
    return all;
  }
};

// For benchmarks: supervoxels of 8^3, of features and of logits, and few large regions.
inline const std::vector<RegionBenchmarkCase> kRegionBenchmarkCases = {
    {"32_of_512_at_64", 64, 8, 32},
    {"4_of_4096_at_128", 128, 8, 4},
    {"32_of_8_at_64", 64, 32, 32},
};

inline Work region_index_work(const RegionParams& p) {
  return {.bytes = 4.0 * static_cast<double>(p.n * (2 * p.voxels + p.regions + 1))};
}

// Of each of the four sums and gathers: a label or a number a voxel, the voxels and the regions.
inline Work region_work(const RegionParams& p, int64_t channels) {
  return {.bytes = 4.0 * static_cast<double>(p.n * (p.voxels + (p.voxels + p.regions) * channels))};
}

}  // namespace vesal::kernels
