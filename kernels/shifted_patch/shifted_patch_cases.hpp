// Shapes on which shifted patch tokenization is verified on every device. Sizes meet, miss by one and pass by
// one what the kernels cut by: on a GPU tiles of 128 tokens or features, 32 or 64 outputs, slices of 16,
// parts of 128 and sums of 256 tokens, channels in fours; on the CPU blocks of 32 tokens, 8 rows, 16 lanes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/shifted_patch/shifted_patch.hpp"

namespace vesal::kernels {

struct ShiftedPatchCase {
  std::string name;
  ShiftedPatchParams params;
  std::vector<uint8_t> mask;  // [n, groups], empty: all present and no missing-tokens
};

// `params` for images, slice by slice: square patches and the paper's shift of half of them.
inline ShiftedPatchParams image_params(ShiftedPatchParams params, int patch, ShiftSet shifts) {
  params.patch = {1, patch, patch};
  params.shift = {0, patch / 2, patch / 2};
  params.shifts = shifts;
  return params;
}

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
     {.d = 5,
      .h = 6,
      .w = 4,
      .groups = 2,
      .channels = 1,
      .out = 31,
      .patch = {3, 3, 3},
      .shifts = ShiftSet::face6},
     {0, 1}},
    {"patch 4, shift 2",
     {.d = 8, .h = 4, .w = 9, .channels = 2, .out = 32, .patch = {4, 4, 4}, .shift = {2, 2, 2}},
     {}},
    {"patch 1, shift 3: reaching past several tokens",
     {.d = 5, .h = 4, .w = 6, .groups = 2, .channels = 3, .out = 5, .patch = {1, 1, 1}, .shift = {3, 3, 3}},
     {1, 1}},
    {"2D: depth 1", {.d = 1, .h = 10, .w = 12, .channels = 3, .out = 8, .shifts = ShiftSet::tetra4}, {}},
    {"shift larger than the volume",
     {.d = 2, .h = 2, .w = 3, .channels = 2, .out = 4, .shift = {5, 5, 5}},
     {}},
    {"shift 0",
     {.d = 2, .h = 4, .w = 4, .channels = 2, .out = 4, .shift = {0, 0, 0}, .shifts = ShiftSet::face6},
     {}},
    {"63 tokens", {.d = 6, .h = 6, .w = 14, .out = 15}, {}},
    {"64 tokens", {.d = 8, .h = 8, .w = 8, .out = 17, .shifts = ShiftSet::tetra4}, {}},
    {"65 tokens", {.d = 2, .h = 10, .w = 26, .out = 23, .shifts = ShiftSet::face6}, {}},
    {"many features, few outputs", {.d = 2, .h = 2, .w = 4, .channels = 31, .out = 2}, {}},
    {"2D embedding of the paper",
     image_params({.h = 10, .w = 12, .channels = 3, .out = 16}, 2, ShiftSet::diagonal4),
     {}},
    {"2D embedding, odd extents, batch",
     image_params({.n = 3, .h = 7, .w = 9, .channels = 3, .out = 9}, 2, ShiftSet::diagonal4),
     {}},
    {"2D merge, cardinal4, 17 channels",
     image_params({.n = 2, .h = 6, .w = 8, .channels = 17, .out = 33}, 2, ShiftSet::cardinal4),
     {}},
    {"2D, cardinal8, patch 4, shift 2",
     image_params({.h = 12, .w = 17, .channels = 2, .out = 24}, 4, ShiftSet::cardinal8),
     {}},
    {"2D, diagonal4, patch 4, two of three modalities, batch",
     image_params({.n = 2, .h = 9, .w = 8, .groups = 3, .channels = 1, .out = 31}, 4, ShiftSet::diagonal4),
     {1, 0, 1, 0, 1, 1}},
    {"slices of a volume, cardinal8, patch 1x2x2",
     image_params({.d = 3, .h = 6, .w = 6, .groups = 2, .channels = 2, .out = 10}, 2, ShiftSet::cardinal8),
     {1, 0}},
    {"in-plane shifts, patch 2x2x2",
     {.d = 5, .h = 4, .w = 6, .channels = 3, .out = 8, .shifts = ShiftSet::cardinal8},
     {}},
    {"thick slices: patch 1x4x4, shift 0x2x2, corner8",
     {.d = 3, .h = 9, .w = 8, .groups = 2, .channels = 2, .out = 12, .patch = {1, 4, 4}, .shift = {0, 2, 2}},
     {}},
    {"patch 2x4x3, shift 1x2x3, tetra4, masked",
     {.n = 2,
      .d = 5,
      .h = 7,
      .w = 8,
      .groups = 2,
      .channels = 2,
      .out = 11,
      .patch = {2, 4, 3},
      .shift = {1, 2, 3},
      .shifts = ShiftSet::tetra4},
     {0, 1, 1, 1}},
    {"patch 4x1x2, shift 3x0x1, face6",
     {.d = 9,
      .h = 3,
      .w = 4,
      .channels = 3,
      .out = 13,
      .patch = {4, 1, 2},
      .shift = {3, 0, 1},
      .shifts = ShiftSet::face6},
     {}},
    {"many outputs", {.d = 2, .h = 4, .w = 4, .channels = 1, .out = 65, .shifts = ShiftSet::tetra4}, {}},
    {"127 tokens", {.d = 2, .h = 2, .w = 254, .out = 3, .shifts = ShiftSet::tetra4}, {}},
    {"128 tokens", {.d = 4, .h = 8, .w = 32, .out = 3, .shifts = ShiftSet::tetra4}, {}},
    {"129 tokens", {.d = 2, .h = 6, .w = 86, .out = 3, .shifts = ShiftSet::tetra4}, {}},
    {"255 tokens", {.d = 2, .h = 10, .w = 102, .out = 2, .shifts = ShiftSet::tetra4}, {}},
    {"256 tokens, masked, batch",
     {.n = 2, .d = 8, .h = 16, .w = 16, .groups = 2, .out = 2, .shifts = ShiftSet::tetra4},
     {1, 0, 1, 1}},
    {"513 tokens", {.d = 9, .h = 3, .w = 19, .channels = 4, .out = 2, .patch = {1, 1, 1}}, {}},
    {"126 features, 63 outputs",
     {.d = 1, .h = 3, .w = 20, .out = 63, .patch = {1, 2, 9}, .shifts = ShiftSet::face6},
     {}},
    {"130 features, 64 outputs",
     {.d = 1, .h = 4, .w = 26, .out = 64, .patch = {1, 2, 13}, .shifts = ShiftSet::tetra4},
     {}},
    {"255 features: one part",
     {.h = 2, .w = 3, .channels = 51, .out = 5, .patch = {1, 1, 1}, .shifts = ShiftSet::tetra4},
     {}},
    {"260 features: two parts, masked",
     {.n = 2,
      .h = 2,
      .w = 3,
      .groups = 2,
      .channels = 52,
      .out = 5,
      .patch = {1, 1, 1},
      .shifts = ShiftSet::tetra4},
     {1, 1, 0, 1}},
    {"four channels, masked, batch",
     {.n = 3, .d = 4, .h = 5, .w = 6, .groups = 3, .channels = 4, .out = 12},
     {1, 0, 1, 1, 1, 1, 0, 0, 1}},
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

// A shape of the contract at random, small enough for the emulator: at most 120000 products of the
// projection.
inline ShiftedPatchCase draw_shifted_patch(RandomStream& random) {
  const auto among = [&](int64_t low, int64_t high) { return low + random.below(high - low + 1); };
  constexpr std::array<const char*, 6> kNames{"corner8",   "face6",     "tetra4",
                                              "diagonal4", "cardinal4", "cardinal8"};
  for (;;) {
    ShiftedPatchCase c;
    ShiftedPatchParams& p = c.params;
    p.n = among(1, 3);
    p.d = random.below(3) == 0 ? 1 : among(1, 7);
    p.h = among(1, 11);
    p.w = among(1, 13);
    p.groups = among(1, 4);
    p.channels = among(1, random.below(4) == 0 ? 20 : 4);
    p.out = among(1, random.below(4) == 0 ? 70 : 20);
    const size_t set = static_cast<size_t>(random.below(kNames.size()));
    p.shifts = static_cast<ShiftSet>(set);
    if (random.below(2) == 0) {
      for (size_t axis = 0; axis < 3; ++axis) {
        p.patch[axis] = static_cast<int>(among(1, 4));
        p.shift[axis] = static_cast<int>(random.below(2) == 0 ? p.patch[axis] / 2 : among(0, 4));
      }
    } else {
      p = image_params(p, static_cast<int>(among(1, 4)), p.shifts);
    }
    if (p.tokens() * p.groups * p.features() * p.out > 120'000) {
      continue;
    }
    if (random.below(3) != 0) {
      for (int64_t sample = 0; sample < p.n; ++sample) {
        const int64_t present = random.below(p.groups);  // one at least
        for (int64_t group = 0; group < p.groups; ++group) {
          c.mask.push_back(group == present || random.below(2) == 0 ? 1 : 0);
        }
      }
    }
    c.name = concat(p.n, 'x', p.d, 'x', p.h, 'x', p.w, ", ", p.groups, " groups of ", p.channels, ", ", p.out,
                    " outputs, patch ", p.patch[0], 'x', p.patch[1], 'x', p.patch[2], ", shift ", p.shift[0],
                    'x', p.shift[1], 'x', p.shift[2], ", ", kNames[set], c.mask.empty() ? "" : ", masked");
    return c;
  }
}

}  // namespace vesal::kernels
