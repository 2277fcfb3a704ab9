// The update rules and parameter sets that the optimisers are tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/philox.hpp"
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

}  // namespace vesal::kernels
