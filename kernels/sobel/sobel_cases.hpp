// Sizes that the Sobel kernels are tested with: around a CUDA tile of 4 x 8 x 32 voxels and a host stretch of
// 256; volumes thinner than the stencil. For the gate: channels around 1 to 32 lanes (CUDA), voxels around
// groups of 64 (host).
#pragma once

#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/sobel/sobel.hpp"

namespace vesal::kernels {

struct SobelCase {
  std::string name;
  SobelParams params;
};

inline const std::vector<SobelCase> kSobelCases = {
    {"one_voxel", {1, 1, 1, 1}},
    {"two_voxels", {2, 1, 1, 2}},
    {"flat", {2, 1, 5, 6}},
    {"line", {1, 7, 1, 1}},
    {"anisotropic", {2, 3, 4, 5, {2.5f, 0.75f, 1.3f}}},
    {"tile_minus_one", {1, 3, 7, 31}},
    {"tile", {1, 4, 8, 32}},
    {"tile_plus_one", {2, 5, 9, 33}},
    {"stretch_minus_one", {1, 2, 1, 255}},
    {"stretch", {1, 1, 2, 256}},
    {"stretch_plus_one", {1, 2, 2, 257}},
    {"two_stretches_plus_one", {1, 1, 2, 513}},
    {"no_samples", {0, 3, 4, 5}},
    {"no_planes", {2, 0, 4, 5}},
    {"no_rows", {2, 3, 0, 5}},
    {"no_columns", {2, 3, 4, 0}},
};

struct EdgeGateCase {
  std::string name;
  EdgeGateParams params;
};

inline const std::vector<EdgeGateCase> kEdgeGateCases = {
    {"one", {1, 1}},           {"channels_2", {63, 2}},   {"channels_3", {64, 3}},   {"channels_4", {65, 4}},
    {"channels_1", {257, 1}},  {"channels_15", {9, 15}},  {"channels_16", {8, 16}},  {"channels_17", {7, 17}},
    {"channels_31", {33, 31}}, {"channels_32", {32, 32}}, {"channels_33", {31, 33}}, {"channels_65", {5, 65}},
    {"no_voxels", {0, 3}},
};

// For benchmarks: whole patches, and the gate of the features at half their resolution.
inline const std::vector<SobelCase> kSobelBenchmarkCases = {
    {"64", {1, 64, 64, 64}},
    {"128", {1, 128, 128, 128}},
};

inline const std::vector<EdgeGateCase> kEdgeGateBenchmarkCases = {
    {"24_at_64", {262144, 24}},
    {"4_at_64", {262144, 4}},
};

// `numbers` are what is read and written a voxel.
inline Work sobel_work(const SobelParams& p, int numbers) {
  return {.bytes = 4.0 * static_cast<double>(p.n * p.d * p.h * p.w * numbers)};
}

inline Work edge_gate_work(const EdgeGateParams& p, bool backward) {
  return {.bytes =
              4.0 * static_cast<double>(p.voxels * (backward ? 6 + 3 * p.channels : 3 + 2 * p.channels))};
}

inline SobelParams random_sobel_params(RandomStream& random) {
  SobelParams p{1 + random.below(2), 1 + random.below(6), 1 + random.below(10),
                1 + random.below(random.below(4) == 0 ? 70 : 10)};
  if (random.bernoulli(0.5f)) {
    p.spacing = {random.uniform(0.5f, 4.0f), random.uniform(0.5f, 4.0f), random.uniform(0.5f, 4.0f)};
  }
  return p;
}

inline EdgeGateParams random_edge_gate_params(RandomStream& random) {
  return {1 + random.below(random.below(4) == 0 ? 300 : 30), 1 + random.below(random.below(4) == 0 ? 70 : 8)};
}

}  // namespace vesal::kernels
