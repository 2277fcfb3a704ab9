// The sizes that instance normalisation is tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/instance_norm/instance_norm.hpp"

namespace vesal::kernels {

struct InstanceNormCase {
  std::string name;
  InstanceNormParams params;
  bool affine = true;
  float offset = 0.0f;  // added to the inputs: a mean far from 0
};

// A slab holds about 256 rows, a tile of columns at most 32 channels, a wide row at least 64 floats.
inline const std::vector<InstanceNormCase> kInstanceNormCases = {
    {"one_channel", {.n = 1, .spatial = 129, .channels = 1}},
    {"three_relu", {.n = 2, .spatial = 257, .channels = 3, .activation = Activation::relu}},
    {"twelve_leaky", {.n = 1, .spatial = 255, .channels = 12, .activation = Activation::leaky_relu}},
    {"slab_relu", {.n = 1, .spatial = 256, .channels = 24, .activation = Activation::relu}},
    {"plain",
     {.n = 2, .spatial = 60, .channels = 5, .activation = Activation::leaky_relu, .negative_slope = 0.2f},
     false},
    {"tile_minus_one", {.n = 1, .spatial = 33, .channels = 31, .activation = Activation::relu}},
    {"tile", {.n = 1, .spatial = 33, .channels = 32}, false},
    {"tile_plus_one", {.n = 3, .spatial = 9, .channels = 33, .activation = Activation::relu}},
    {"wide", {.n = 1, .spatial = 8, .channels = 100}},
    {"three_slabs", {.n = 1, .spatial = 700, .channels = 8, .activation = Activation::relu}},
    {"far_mean", {.n = 1, .spatial = 600, .channels = 2}, true, 1000.0f},
};

}  // namespace vesal::kernels
