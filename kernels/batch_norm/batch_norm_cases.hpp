// The sizes that batch normalisation is tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/batch_norm/batch_norm.hpp"
#include "kernels/context/work.hpp"

namespace vesal::kernels {

struct BatchNormCase {
  std::string name;
  BatchNormParams params;
  bool affine = true;
  float offset = 0.0f;  // added to the inputs: a mean far from 0
};

// A slab holds about 256 rows, a tile of columns at most 32 channels, of which a block takes 64 rows at a
// time, a wide row at least 64 floats.
inline const std::vector<BatchNormCase> kBatchNormCases = {
    {"one_channel", {.n = 1, .spatial = 129, .channels = 1}},
    {"one_voxel", {.n = 5, .spatial = 1, .channels = 6}},
    {"one_voxel_eval", {.n = 1, .spatial = 1, .channels = 3, .training = false}},
    {"one_element_eval", {.n = 1, .spatial = 1, .channels = 1, .training = false}},
    {"two_rows", {.n = 2, .spatial = 1, .channels = 40, .activation = Activation::silu}},
    {"three_relu", {.n = 2, .spatial = 257, .channels = 3, .activation = Activation::relu}},
    {"slab_minus_one", {.n = 3, .spatial = 85, .channels = 12, .activation = Activation::leaky_relu}},
    {"slab", {.n = 2, .spatial = 128, .channels = 24, .activation = Activation::gelu}},
    {"slab_plus_one", {.n = 1, .spatial = 257, .channels = 5, .activation = Activation::elu}},
    {"plain", {.n = 2, .spatial = 60, .channels = 5, .activation = Activation::relu}, false},
    {"tile_minus_one", {.n = 1, .spatial = 33, .channels = 31, .activation = Activation::relu}},
    {"tile", {.n = 1, .spatial = 33, .channels = 32, .momentum = 1.0f}, false},
    {"tile_plus_one", {.n = 3, .spatial = 9, .channels = 33, .momentum = 0.0f}},
    {"wide", {.n = 1, .spatial = 8, .channels = 100}},
    {"rows_minus_one", {.n = 1, .spatial = 63, .channels = 32, .activation = Activation::relu}},
    {"rows", {.n = 1, .spatial = 64, .channels = 32, .activation = Activation::leaky_relu}},
    {"rows_plus_one", {.n = 1, .spatial = 65, .channels = 32}, true, 100.0f},
    {"three_slabs", {.n = 2, .spatial = 350, .channels = 8, .activation = Activation::relu}},
    {"far_mean", {.n = 1, .spatial = 600, .channels = 2}, true, 1000.0f},
    {"eval", {.n = 2, .spatial = 257, .channels = 7, .training = false, .activation = Activation::gelu}},
    {"eval_plain",
     {.n = 2, .spatial = 30, .channels = 33, .training = false, .activation = Activation::leaky_relu},
     false},
};

inline BatchNormCase random_batch_norm_case(RandomStream& random) {
  constexpr Activation kChoices[] = {Activation::none, Activation::relu, Activation::leaky_relu,
                                     Activation::gelu, Activation::silu, Activation::elu};
  BatchNormCase c;
  c.params = {.n = 1 + random.below(4),
              .spatial = 1 + random.below(random.below(4) == 0 ? 300 : 20),
              .channels = 1 + random.below(random.below(4) == 0 ? 70 : 12),
              .training = random.below(3) != 0,
              .activation = kChoices[random.below(6)]};
  if (c.params.rows() < 2) {
    c.params.training = false;
  }
  c.affine = random.below(4) != 0;
  c.name = concat("[", c.params.n, ", ", c.params.spatial, ", ", c.params.channels, "] activation ",
                  static_cast<int>(c.params.activation), c.params.training ? " training" : " evaluation",
                  c.affine ? " affine" : "");
  return c;
}

// For benchmarks: a U-Net at 64^3, MeshNet at 96^3, and both modes at 128^3.
inline const std::vector<BatchNormCase> kBatchNormBenchmarkCases = {
    {"32_64_relu", {.n = 2, .spatial = 262144, .channels = 32, .activation = Activation::relu}},
    {"5_96_meshnet", {.n = 1, .spatial = 884736, .channels = 5, .activation = Activation::relu}},
    {"128_16_silu", {.n = 2, .spatial = 4096, .channels = 128, .activation = Activation::silu}},
    {"32_128", {.n = 1, .spatial = 2097152, .channels = 32}},
    {"32_128_eval", {.n = 1, .spatial = 2097152, .channels = 32, .training = false}},
};

inline Work batch_norm_work(const BatchNormParams& p, bool backward) {
  return {.bytes = 4.0 * static_cast<double>(p.rows() * p.channels) * (backward ? 3 : 2)};
}

}  // namespace vesal::kernels
