// The sizes that instance normalisation is tested and measured with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/context/work.hpp"
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
    {"one_element", {.n = 1, .spatial = 1, .channels = 1}},
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

// For benchmarks: the fusion network at 64^3, and nnU-Net's first two levels at 128^3.
inline const std::vector<InstanceNormCase> kInstanceNormBenchmarkCases = {
    {"12_64_relu", {.n = 1, .spatial = 262144, .channels = 12, .activation = Activation::relu}},
    {"24_64_relu", {.n = 1, .spatial = 262144, .channels = 24, .activation = Activation::relu}},
    {"96_16_relu", {.n = 2, .spatial = 4096, .channels = 96, .activation = Activation::relu}},
    {"32_128_leaky_nnunet",
     {.n = 1, .spatial = 2097152, .channels = 32, .activation = Activation::leaky_relu}},
    {"64_64_leaky_nnunet", {.n = 1, .spatial = 262144, .channels = 64, .activation = Activation::leaky_relu}},
    {"48_48_swinunetr", {.n = 1, .spatial = 110592, .channels = 48}, false},
};

inline Work instance_norm_work(const InstanceNormParams& p, bool backward) {
  return {.bytes = 4.0 * static_cast<double>(p.n * p.spatial * p.channels) * (backward ? 3 : 2)};
}

}  // namespace vesal::kernels
