// The parameter sets that the optimiser is tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/optimizer/optimizer.hpp"

namespace vesal::kernels {

struct OptimizerCase {
  std::string name;
  std::vector<int64_t> counts;  // elements of each tensor; every other one decays
  float max_norm = 0.0f;
};

inline const std::vector<OptimizerCase> kOptimizerCases = {
    {"one", {1}},
    {"chunk_minus_one", {kOptimizerChunk - 1}, 1.0f},
    {"chunk", {kOptimizerChunk}, 1e6f},
    {"chunk_plus_one", {kOptimizerChunk + 1}, 0.5f},
    {"several", {3, 255, 0, 257, 4100, 1}, 1.0f},
    {"several_unclipped", {256, 24, 5000}},
};

}  // namespace vesal::kernels
