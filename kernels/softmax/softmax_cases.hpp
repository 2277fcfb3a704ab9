// The sizes that softmax is tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vesal::kernels {

struct SoftmaxCase {
  std::string name;
  int64_t rows = 1;
  int64_t channels = 1;
};

// A warp has 32 lanes, a block takes 8 rows or more; the CPU handles fewer than 16 channels in blocks of 64
// rows.
inline const std::vector<SoftmaxCase> kSoftmaxCases = {
    {"one", 1, 1},        {"pair", 5, 2},           {"classes", 65, 4}, {"row_block_minus_one", 63, 3},
    {"row_block", 64, 7}, {"narrow_most", 66, 15},  {"vector", 9, 16},  {"warp_minus_one", 7, 31},
    {"warp", 8, 32},      {"warp_plus_one", 9, 33}, {"wide", 3, 300},
};

}  // namespace vesal::kernels
