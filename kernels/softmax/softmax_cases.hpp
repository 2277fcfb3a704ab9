// The sizes that softmax is tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/philox.hpp"
#include "kernels/context/work.hpp"

namespace vesal::kernels {

struct SoftmaxCase {
  std::string name;
  int64_t rows = 1;
  int64_t channels = 1;
};

// On a GPU a thread has four values of up to 128 channels and sixteen of up to 512, a block 8 to 256 rows;
// the CPU handles fewer than 16 channels in blocks of 64 rows.
inline const std::vector<SoftmaxCase> kSoftmaxCases = {
    {"one", 1, 1},
    {"pair", 5, 2},
    {"classes", 65, 4},
    {"row_block_minus_one", 63, 3},
    {"row_block", 64, 7},
    {"narrow_most", 66, 15},
    {"vector", 9, 16},
    {"warp_minus_one", 7, 31},
    {"no_rows", 0, 4},
    {"warp", 8, 32},
    {"warp_plus_one", 9, 33},
    {"wide", 3, 300},
    {"block_minus_one", 255, 4},
    {"block", 256, 4},
    {"block_plus_one", 257, 4},
    {"two_lanes", 130, 8},
    {"five", 129, 5},
    {"window", 9, 64},
    {"few_values_minus_one", 9, 127},
    {"few_values", 9, 128},
    {"few_values_plus_one", 9, 129},
    {"fours", 9, 132},
    {"odd_window", 5, 343},
    {"values_minus_one", 9, 511},
    {"values", 9, 512},
    {"values_plus_one", 9, 513},
};

// For benchmarks: four classes at 64^3 and 128^3, attention in windows of 4^3 and 7^3.
inline const std::vector<SoftmaxCase> kSoftmaxBenchmarkCases = {
    {"4_classes_64", 262144, 4},
    {"4_classes_128", 2097152, 4},
    {"window_4", 65536, 64},
    {"window_7", 131712, 343},
};

inline Work softmax_work(const SoftmaxCase& c, bool backward) {
  return {.bytes = 4.0 * static_cast<double>(c.rows * c.channels) * (backward ? 3 : 2)};
}

inline SoftmaxCase random_softmax_case(RandomStream& random) {
  SoftmaxCase c;
  c.rows = 1 + random.below(random.below(4) == 0 ? 150 : 20);
  c.channels = 1 + random.below(random.below(4) == 0 ? 100 : 20);
  c.name = concat("[", c.rows, ", ", c.channels, "]");
  return c;
}

}  // namespace vesal::kernels
