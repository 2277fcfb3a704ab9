// Shapes on which the rotary embedding is verified on every device: two and three axes, whole and partial
// pairs, repeated grids, excluded tokens, strides; more and fewer pairs than the GPU's block of 256.
#pragma once

#include <string>
#include <vector>

#include "kernels/context/work.hpp"
#include "kernels/rotary/rotary.hpp"

namespace vesal::kernels {

struct RotaryCase {
  std::string name;
  RotaryParams params;
};

inline const std::vector<RotaryCase> kRotaryCases{
    {"one token", {}},
    {"SAM 2's queries, smaller", {.n = 2, .tokens = 48, .head_dim = 256, .grid = {1, 6, 8}}},
    {"SAM 2's keys: three frames and five pointers",
     {.n = 2, .tokens = 41, .head_dim = 64, .grid = {1, 3, 4}, .excluded = 5}},
    {"only pointers", {.tokens = 3, .head_dim = 8, .grid = {1, 2, 2}, .excluded = 3}},
    {"heads, fused input, packed output",
     {.n = 2, .tokens = 15, .heads = 3, .head_dim = 12, .x_stride = 108, .grid = {1, 3, 5}}},
    {"both strided",
     {.tokens = 6, .heads = 2, .head_dim = 9, .x_stride = 21, .y_stride = 19, .grid = {1, 3, 2}}},
    {"255 channels", {.tokens = 4, .head_dim = 255, .grid = {1, 2, 2}}},
    {"256 pairs of tokens and channels", {.tokens = 16, .head_dim = 32, .grid = {1, 4, 4}}},
    {"257 tokens of two pairs", {.tokens = 257, .head_dim = 4, .grid = {1, 1, 257}}},
    {"3D", {.n = 2, .tokens = 60, .heads = 2, .head_dim = 24, .axes = 3, .grid = {3, 4, 5}}},
    {"3D, channels left over, repeated, excluded",
     {.n = 2, .tokens = 53, .heads = 2, .head_dim = 64, .axes = 3, .grid = {2, 4, 3}, .excluded = 5}},
    {"3D, odd channels", {.tokens = 8, .heads = 3, .head_dim = 7, .axes = 3, .grid = {2, 2, 2}}},
    {"512 channels, another theta", {.tokens = 10, .head_dim = 512, .grid = {1, 5, 2}, .theta = 100.0f}},
};

// For benchmarks: SAM 2's queries, and its keys of seven frames and 64 pointers; the same in 3D with heads.
inline const std::vector<RotaryCase> kRotaryBenchmarkCases{
    {"sam2_queries", {.tokens = 4096, .head_dim = 256, .grid = {1, 64, 64}}},
    {"sam2_memory", {.tokens = 28736, .head_dim = 256, .grid = {1, 64, 64}, .excluded = 64}},
    {"heads_of_48_3d", {.tokens = 4096, .heads = 8, .head_dim = 48, .axes = 3, .grid = {16, 16, 16}}},
};

inline Work rotary_work(const RotaryParams& p) {
  return {.bytes = 8.0 * static_cast<double>(p.n * p.tokens * p.channels())};
}

}  // namespace vesal::kernels
