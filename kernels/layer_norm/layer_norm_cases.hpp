// The sizes that layer normalisation is tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/layer_norm/layer_norm.hpp"

namespace vesal::kernels {

struct LayerNormCase {
  std::string name;
  int64_t rows = 1;
  int64_t channels = 1;
  float offset = 0.0f;  // added to the inputs: a mean far from 0
  Activation activation = Activation::none;
  bool affine = true;
};

// A warp has 32 lanes, a block takes 8 rows or more, a slab 256 rows.
inline const std::vector<LayerNormCase> kLayerNormCases = {
    {"one_channel", 3, 1},
    {"three", 9, 3},
    {"warp_minus_one", 8, 31},
    {"warp", 7, 32},
    {"warp_plus_one", 9, 33},
    {"swin", 257, 24},
    {"swin_deep", 16, 192},
    {"patch", 5, 288},
    {"slab_minus_one", 255, 8},
    {"slab", 256, 5},
    {"far_mean", 12, 48, 1000.0f},
    {"merge", 3, 960},
    {"one_row", 1, 7},
    {"no_rows", 0, 5},
    {"relu", 300, 16, 0.0f, Activation::relu},
    {"leaky_relu", 33, 31, 0.0f, Activation::leaky_relu},
    {"gelu", 257, 24, 0.0f, Activation::gelu},
    {"silu", 64, 33, 0.0f, Activation::silu},
    {"elu", 40, 48, 0.0f, Activation::elu},
    {"plain", 20, 32, 0.0f, Activation::none, false},
    {"plain_gelu", 20, 12, 0.0f, Activation::gelu, false},
};

// For benchmarks: the tokens of the fusion network (24) and of SwinUNETR (48, and 384 before a merge).
inline const std::vector<LayerNormCase> kLayerNormBenchmarkCases = {
    {"24_tokens_32", 32768, 24},  {"24_tokens_64", 262144, 24},  {"48_tokens_48", 110592, 48},
    {"192_tokens_12", 1728, 192}, {"384_tokens_24", 13824, 384},
};

inline Work layer_norm_work(const LayerNormCase& c, bool backward) {
  return {.bytes = 4.0 * static_cast<double>(c.rows * c.channels) * (backward ? 3 : 2)};
}

inline LayerNormCase random_layer_norm_case(RandomStream& random) {
  constexpr Activation kChoices[] = {Activation::none, Activation::relu, Activation::leaky_relu,
                                     Activation::gelu, Activation::silu, Activation::elu};
  constexpr int64_t kWidths[] = {16, 24, 32, 48};
  LayerNormCase c;
  c.rows = 1 + random.below(random.below(4) == 0 ? 300 : 20);
  c.channels = random.below(4) == 0 ? kWidths[random.below(4)] : 2 + random.below(70);
  c.activation = kChoices[random.below(6)];
  c.affine = random.below(4) != 0;
  c.name = concat("[", c.rows, ", ", c.channels, "] activation ", static_cast<int>(c.activation),
                  c.affine ? " affine" : "");
  return c;
}

}  // namespace vesal::kernels
