// The shapes that linear is tested and measured on. The kernel's tile is 128 rows x 32 or 64 outputs x 16
// inputs.
#pragma once

#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/linear/linear.hpp"

namespace vesal::kernels {

struct LinearCase {
  std::string name;
  LinearParams params;
};

inline const std::vector<LinearCase> kLinearCases = {
    {"one_by_one", {.rows = 1, .in = 1, .out = 1}},
    {"below_the_tiles", {.rows = 127, .in = 15, .out = 31}},
    {"equal_to_the_tiles", {.rows = 128, .in = 16, .out = 32}},
    {"above_the_tiles", {.rows = 129, .in = 17, .out = 33}},
    {"below_the_wide_tile", {.rows = 60, .in = 36, .out = 63, .activation = Activation::relu}},
    {"equal_to_the_wide_tile", {.rows = 40, .in = 32, .out = 64, .activation = Activation::gelu}},
    {"above_the_wide_tile", {.rows = 130, .in = 20, .out = 65, .activation = Activation::relu}},
    {"aligned_in_ragged_out", {.rows = 33, .in = 24, .out = 3}},
    {"ragged_in_aligned_out", {.rows = 33, .in = 6, .out = 48, .activation = Activation::gelu}},
    {"deep_sum", {.rows = 7, .in = 1031, .out = 5, .activation = Activation::gelu}},
    {"many_rows", {.rows = 4099, .in = 4, .out = 6, .activation = Activation::relu}},
    {"no_rows", {.rows = 0, .in = 5, .out = 7}},
};

// For benchmarks: the projections of the fusion network (tiny, 64^3), of SwinUNETR (96^3), and a head of
// three classes.
inline const std::vector<LinearCase> kLinearBenchmarkCases = {
    {"qkv_24_tokens_32", {.rows = 32768, .in = 24, .out = 72}},
    {"mlp_24_tokens_32", {.rows = 32768, .in = 24, .out = 96, .activation = Activation::gelu}},
    {"mlp_back_96_tokens_32", {.rows = 32768, .in = 96, .out = 24}},
    {"qkv_192_tokens_4", {.rows = 64, .in = 192, .out = 576}},
    {"qkv_48_tokens_48", {.rows = 110592, .in = 48, .out = 144}},
    {"mlp_48_tokens_48", {.rows = 110592, .in = 48, .out = 192, .activation = Activation::gelu}},
    {"merge_384_tokens_24", {.rows = 13824, .in = 384, .out = 96}},
    {"head_12_voxels_64", {.rows = 262144, .in = 12, .out = 3}},
};

// Of any pass.
inline Work linear_work(const LinearParams& p) {
  return {.flops = 2.0 * static_cast<double>(p.rows * p.in * p.out),
          .bytes = 4.0 * static_cast<double>(p.rows * (p.in + p.out) + p.in * p.out)};
}

inline LinearParams random_linear_params(RandomStream& random) {
  constexpr Activation kChoices[] = {Activation::none, Activation::relu, Activation::gelu};
  return {.rows = 1 + random.below(random.below(4) == 0 ? 200 : 30),
          .in = 1 + random.below(random.below(4) == 0 ? 100 : 20),
          .out = 1 + random.below(random.below(4) == 0 ? 80 : 20),
          .activation = kChoices[random.below(3)]};
}

}  // namespace vesal::kernels
