// The sizes that group normalisation is tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/group_norm/group_norm.hpp"

namespace vesal::kernels {

struct GroupNormCase {
  std::string name;
  GroupNormParams params;
  bool affine = true;
  float offset = 0.0f;  // added to the inputs: a mean far from 0
};

// A slab holds about 256 rows, a tile of columns at most 32 channels, a wide row at least 64 floats; a warp
// shares a group of more than 16 channels.
inline const std::vector<GroupNormCase> kGroupNormCases = {
    {"one_channel", {.n = 1, .spatial = 129, .channels = 1, .groups = 1}},
    {"one_voxel", {.n = 2, .spatial = 1, .channels = 12, .groups = 3}},
    {"one_voxel_instance", {.n = 2, .spatial = 1, .channels = 3, .groups = 3}},
    {"one_element", {.n = 1, .spatial = 1, .channels = 1, .groups = 1}},
    {"one_group", {.n = 2, .spatial = 257, .channels = 6, .groups = 1, .activation = Activation::relu}},
    {"instance", {.n = 2, .spatial = 255, .channels = 7, .groups = 7, .activation = Activation::leaky_relu}},
    {"slab", {.n = 1, .spatial = 256, .channels = 24, .groups = 8, .activation = Activation::gelu}},
    {"plain", {.n = 2, .spatial = 60, .channels = 10, .groups = 5, .activation = Activation::silu}, false},
    {"warp_minus_one", {.n = 1, .spatial = 9, .channels = 62, .groups = 2, .activation = Activation::elu}},
    {"warp", {.n = 1, .spatial = 9, .channels = 64, .groups = 2}},
    {"warp_plus_one", {.n = 3, .spatial = 9, .channels = 66, .groups = 2}},
    {"tile_minus_one", {.n = 1, .spatial = 33, .channels = 31, .groups = 1}, false},
    {"tile_plus_one", {.n = 1, .spatial = 33, .channels = 33, .groups = 11, .activation = Activation::relu}},
    {"many_groups", {.n = 3, .spatial = 5, .channels = 300, .groups = 100}},
    {"three_slabs", {.n = 1, .spatial = 700, .channels = 8, .groups = 4, .activation = Activation::relu}},
    {"far_mean", {.n = 1, .spatial = 600, .channels = 4, .groups = 2}, true, 1000.0f},
};

inline GroupNormCase random_group_norm_case(RandomStream& random) {
  constexpr Activation kChoices[] = {Activation::none, Activation::relu, Activation::leaky_relu,
                                     Activation::gelu, Activation::silu, Activation::elu};
  const int64_t groups = 1 + random.below(8);
  GroupNormCase c;
  c.params = {.n = 1 + random.below(3),
              .spatial = 1 + random.below(random.below(4) == 0 ? 300 : 20),
              .channels = groups * (1 + random.below(random.below(4) == 0 ? 40 : 5)),
              .groups = groups,
              .activation = kChoices[random.below(6)]};
  c.affine = random.below(4) != 0;
  c.name = concat("[", c.params.n, ", ", c.params.spatial, ", ", c.params.channels, "] groups ", groups,
                  " activation ", static_cast<int>(c.params.activation), c.affine ? " affine" : "");
  return c;
}

// For benchmarks: U-Nets with 8 groups at 64^3 and 128^3, and the channels-first layer normalisation of
// VeloxSeg.
inline const std::vector<GroupNormCase> kGroupNormBenchmarkCases = {
    {"32_64_relu", {.n = 1, .spatial = 262144, .channels = 32, .groups = 8, .activation = Activation::relu}},
    {"32_128_silu",
     {.n = 1, .spatial = 2097152, .channels = 32, .groups = 8, .activation = Activation::silu}},
    {"128_16_gelu", {.n = 2, .spatial = 4096, .channels = 128, .groups = 8, .activation = Activation::gelu}},
    {"16_24_one_group", {.n = 1, .spatial = 13824, .channels = 16, .groups = 1}},
};

inline Work group_norm_work(const GroupNormParams& p, bool backward) {
  return {.bytes = 4.0 * static_cast<double>(p.n * p.spatial * p.channels) * (backward ? 3 : 2)};
}

}  // namespace vesal::kernels
