// The update rules and parameter sets that the optimisers are tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/optimizer/optimizer.hpp"

namespace vesal::kernels {

struct OptimizerRule {
  std::string name;
  bool adam = true;  // else SGD
  WeightDecay decay = WeightDecay::decoupled;
  bool amsgrad = false;
  float momentum = 0.0f;
  bool nesterov = false;
};

inline const std::vector<OptimizerRule> kOptimizerRules = {
    {"adamw"},
    {"adamw_amsgrad", true, WeightDecay::decoupled, true},
    {"adam", true, WeightDecay::l2},
    {"adam_amsgrad", true, WeightDecay::l2, true},
    {.name = "sgd", .adam = false},
    {.name = "sgd_momentum", .adam = false, .momentum = 0.9f},
    {.name = "sgd_nesterov", .adam = false, .momentum = 0.99f, .nesterov = true},
};

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

inline OptimizerCase draw_optimizer_case(RandomStream& random) {
  OptimizerCase c;
  c.name = "random";
  for (int64_t tensors = 1 + random.below(4); tensors > 0; --tensors) {
    // Most are small, one in four comes near a chunk's size.
    c.counts.push_back(random.below(4) == 0 ? kOptimizerChunk - 2 + random.below(5) : random.below(300));
  }
  const float norms[] = {0.0f, 0.3f, 5.0f, 1e6f};
  c.max_norm = norms[random.below(4)];
  return c;
}

// For benchmarks: as many parameters as the fusion network (tiny) has, in 300 tensors of uneven size, and
// nnU-Net's 31 million in 100.
inline std::vector<int64_t> uneven_counts(int64_t tensors, int64_t total) {
  std::vector<int64_t> counts;
  for (int64_t t = 0; t < tensors; ++t) {
    counts.push_back(total * 2 * t / (tensors * (tensors - 1)) + 24);
  }
  return counts;
}
inline const std::vector<OptimizerCase> kOptimizerBenchmarkCases = {
    {"fusion_tiny", uneven_counts(300, 7'300'000), 1.0f},
    {"nnunet", uneven_counts(100, 31'000'000), 12.0f},
};

// `arrays`: how many of the parameters' size are read or written.
inline Work optimizer_work(const OptimizerCase& c, int arrays) {
  double count = 0;
  for (const int64_t tensor : c.counts) {
    count += static_cast<double>(tensor);
  }
  return {.bytes = 4.0 * count * arrays};
}

}  // namespace vesal::kernels
