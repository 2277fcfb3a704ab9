// Shapes on which shifted patch tokenization is verified on every device. Sizes meet, miss by one and pass by
// one what the kernels cut by: on a GPU tiles of 64 tokens, 32 outputs, 16 features; on the CPU blocks of 32
// tokens, 8 rows, 16 lanes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/context/work.hpp"
#include "kernels/shifted_patch/shifted_patch.hpp"

namespace vesal::kernels {

struct ShiftedPatchCase {
  std::string name;
  ShiftedPatchParams params;
  std::vector<uint8_t> mask;  // [n, groups], empty: all present and no missing-tokens
};

inline const std::vector<ShiftedPatchCase> kShiftedPatchCases{
    {"one voxel", {.out = 3}, {}},
    {"embedding, all present", {.d = 4, .h = 6, .w = 8, .groups = 4, .out = 24}, {1, 1, 1, 1}},
    {"embedding, two of four absent", {.d = 4, .h = 6, .w = 8, .groups = 4, .out = 24}, {0, 1, 0, 1}},
    {"embedding, no mask", {.d = 4, .h = 4, .w = 4, .groups = 2, .out = 16}, {}},
    {"batch with other groups absent in each sample",
     {.n = 3, .d = 2, .h = 5, .w = 6, .groups = 3, .channels = 2, .out = 7},
     {1, 0, 1, 1, 1, 1, 0, 0, 1}},
    {"odd extents", {.d = 3, .h = 5, .w = 7, .groups = 2, .channels = 2, .out = 9}, {1, 0}},
    {"merge, tetra4", {.d = 4, .h = 4, .w = 4, .channels = 12, .out = 24, .shifts = ShiftSet::tetra4}, {}},
    {"merge, tetra4, odd extents",
     {.n = 2, .d = 3, .h = 4, .w = 5, .channels = 5, .out = 33, .shifts = ShiftSet::tetra4},
     {}},
    {"face6, patch 3, shift 1",
     {.d = 5, .h = 6, .w = 4, .groups = 2, .channels = 1, .out = 31, .patch = 3, .shifts = ShiftSet::face6},
     {0, 1}},
    {"patch 4, shift 2", {.d = 8, .h = 4, .w = 9, .channels = 2, .out = 32, .patch = 4, .shift = 2}, {}},
    {"patch 1, shift 3: reaching past several tokens",
     {.d = 5, .h = 4, .w = 6, .groups = 2, .channels = 3, .out = 5, .patch = 1, .shift = 3},
     {1, 1}},
    {"2D: depth 1", {.d = 1, .h = 10, .w = 12, .channels = 3, .out = 8, .shifts = ShiftSet::tetra4}, {}},
    {"shift larger than the volume", {.d = 2, .h = 2, .w = 3, .channels = 2, .out = 4, .shift = 5}, {}},
    {"shift 0", {.d = 2, .h = 4, .w = 4, .channels = 2, .out = 4, .shift = 0, .shifts = ShiftSet::face6}, {}},
    {"63 tokens", {.d = 6, .h = 6, .w = 14, .out = 15}, {}},
    {"64 tokens", {.d = 8, .h = 8, .w = 8, .out = 17, .shifts = ShiftSet::tetra4}, {}},
    {"65 tokens", {.d = 2, .h = 10, .w = 26, .out = 23, .shifts = ShiftSet::face6}, {}},
    {"many features, few outputs", {.d = 2, .h = 2, .w = 4, .channels = 31, .out = 2}, {}},
    {"many outputs", {.d = 2, .h = 4, .w = 4, .channels = 1, .out = 65, .shifts = ShiftSet::tetra4}, {}},
};

// For benchmarks: embedding and merging in the fusion network (tiny and base).
inline const std::vector<ShiftedPatchCase> kShiftedPatchBenchmarkCases{
    {"embed_tiny_64", {.d = 64, .h = 64, .w = 64, .groups = 4, .out = 24}, {}},
    {"embed_base_96", {.d = 96, .h = 96, .w = 96, .groups = 4, .out = 48}, {}},
    {"merge_tiny_32", {.d = 32, .h = 32, .w = 32, .channels = 24, .out = 48, .shifts = ShiftSet::tetra4}, {}},
    {"merge_base_24",
     {.d = 24, .h = 24, .w = 24, .channels = 96, .out = 192, .shifts = ShiftSet::tetra4},
     {}},
};

// The projection's product; backward for its input and its weights.
inline Work shifted_patch_work(const ShiftedPatchParams& p, bool backward) {
  const auto volume = static_cast<double>(p.n * p.d * p.h * p.w * p.groups * p.channels);
  const auto weights = static_cast<double>(p.groups * p.features() * p.out);
  const auto output = static_cast<double>(p.tokens() * p.out);
  return {.flops = 2.0 * static_cast<double>(p.tokens()) * weights * (backward ? 2 : 1),
          .bytes = 4.0 * (backward ? 2 * volume + 2 * weights + output : volume + weights + output)};
}

}  // namespace vesal::kernels
