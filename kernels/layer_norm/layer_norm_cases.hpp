// The sizes that layer normalisation is tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/context/work.hpp"

namespace vesal::kernels {

struct LayerNormCase {
  std::string name;
  int64_t rows = 1;
  int64_t channels = 1;
  float offset = 0.0f;  // added to the inputs: a mean far from 0
};

// A warp has 32 lanes, a block takes 8 rows or more, a slab 256 rows.
inline const std::vector<LayerNormCase> kLayerNormCases = {
    {"one_channel", 3, 1},      {"three", 9, 3},   {"warp_minus_one", 8, 31},     {"warp", 7, 32},
    {"warp_plus_one", 9, 33},   {"swin", 257, 24}, {"swin_deep", 16, 192},        {"patch", 5, 288},
    {"slab_minus_one", 255, 8}, {"slab", 256, 5},  {"far_mean", 12, 48, 1000.0f}, {"merge", 3, 960},
};

// For benchmarks: the tokens of the fusion network (24) and of SwinUNETR (48, and 384 before a merge).
inline const std::vector<LayerNormCase> kLayerNormBenchmarkCases = {
    {"24_tokens_32", 32768, 24},  {"24_tokens_64", 262144, 24},  {"48_tokens_48", 110592, 48},
    {"192_tokens_12", 1728, 192}, {"384_tokens_24", 13824, 384},
};

inline Work layer_norm_work(const LayerNormCase& c, bool backward) {
  return {.bytes = 4.0 * static_cast<double>(c.rows * c.channels) * (backward ? 3 : 2)};
}

}  // namespace vesal::kernels
