// The shapes that conv3d is tested on. The CUDA kernel's tile is 128 voxels x 32 or 64 channels x 16 of (tap,
// channel); the CPU's vectors hold 16 channels.
#pragma once

#include <string>
#include <vector>

#include "kernels/conv3d/conv3d.hpp"

namespace vesal::kernels {

struct Conv3dCase {
  std::string name;
  Conv3dParams params;
};

inline const std::vector<Conv3dCase> kConv3dCases = {
    {"one_voxel", {.n = 1, .d = 1, .h = 1, .w = 1, .c_in = 1, .c_out = 1}},
    {"stem", {.n = 1, .d = 6, .h = 5, .w = 7, .c_in = 2, .c_out = 12}},
    {"four_modalities_batch", {.n = 2, .d = 4, .h = 6, .w = 5, .c_in = 4, .c_out = 8}},
    {"odd_channels", {.n = 2, .d = 3, .h = 4, .w = 5, .c_in = 5, .c_out = 7}},
    {"twelve_twelve", {.n = 1, .d = 5, .h = 4, .w = 6, .c_in = 12, .c_out = 12}},
    {"sixteen_sixteen", {.n = 1, .d = 4, .h = 4, .w = 8, .c_in = 16, .c_out = 16}},
    {"seventeen_fifteen", {.n = 1, .d = 3, .h = 4, .w = 6, .c_in = 17, .c_out = 15}},
    {"thirty_two", {.n = 1, .d = 4, .h = 4, .w = 4, .c_in = 32, .c_out = 32}},
    {"below_the_wide_tile", {.n = 1, .d = 2, .h = 3, .w = 4, .c_in = 24, .c_out = 63}},
    {"equal_to_the_wide_tile", {.n = 1, .d = 2, .h = 3, .w = 4, .c_in = 20, .c_out = 64}},
    {"above_the_wide_tile", {.n = 1, .d = 2, .h = 3, .w = 4, .c_in = 65, .c_out = 65}},
    {"row_of_127",
     {.n = 1, .d = 1, .h = 1, .w = 127, .c_in = 5, .c_out = 31, .kernel = {1, 1, 3}, .padding = {0, 0, 1}}},
    {"row_of_128",
     {.n = 1, .d = 1, .h = 1, .w = 128, .c_in = 4, .c_out = 32, .kernel = {1, 1, 4}, .padding = {0, 0, 2}}},
    {"row_of_129",
     {.n = 1, .d = 1, .h = 1, .w = 129, .c_in = 17, .c_out = 33, .kernel = {1, 1, 1}, .padding = {0, 0, 0}}},
    {"stride_2_even", {.n = 1, .d = 6, .h = 8, .w = 4, .c_in = 8, .c_out = 12, .stride = {2, 2, 2}}},
    {"stride_2_odd", {.n = 2, .d = 5, .h = 7, .w = 3, .c_in = 6, .c_out = 16, .stride = {2, 2, 2}}},
    {"stride_2_aligned", {.n = 1, .d = 8, .h = 8, .w = 8, .c_in = 24, .c_out = 48, .stride = {2, 2, 2}}},
    {"kernel_4_stride_2",
     {.n = 1, .d = 6, .h = 6, .w = 6, .c_in = 8, .c_out = 5, .kernel = {4, 4, 4}, .stride = {2, 2, 2}}},
    {"kernel_2_stride_2",
     {.n = 1,
      .d = 6,
      .h = 4,
      .w = 8,
      .c_in = 12,
      .c_out = 24,
      .kernel = {2, 2, 2},
      .stride = {2, 2, 2},
      .padding = {0, 0, 0}}},
    {"kernel_5",
     {.n = 1, .d = 6, .h = 5, .w = 7, .c_in = 3, .c_out = 6, .kernel = {5, 5, 5}, .padding = {2, 2, 2}}},
    {"stride_beyond_kernel",
     {.n = 1,
      .d = 8,
      .h = 9,
      .w = 10,
      .c_in = 4,
      .c_out = 6,
      .kernel = {2, 2, 2},
      .stride = {3, 3, 3},
      .padding = {0, 0, 0}}},
    {"mixed_axes",
     {.n = 1,
      .d = 5,
      .h = 9,
      .w = 7,
      .c_in = 8,
      .c_out = 10,
      .kernel = {3, 5, 1},
      .stride = {1, 3, 2},
      .padding = {0, 2, 0}}},
    {"no_padding", {.n = 1, .d = 5, .h = 6, .w = 4, .c_in = 12, .c_out = 20, .padding = {0, 0, 0}}},
    {"padding_beyond_kernel",
     {.n = 1, .d = 3, .h = 4, .w = 2, .c_in = 3, .c_out = 4, .kernel = {2, 3, 1}, .padding = {3, 3, 2}}},
    {"flat_image",
     {.n = 2, .d = 1, .h = 9, .w = 11, .c_in = 3, .c_out = 16, .kernel = {1, 3, 3}, .padding = {0, 1, 1}}},
    {"pointwise",
     {.n = 2, .d = 4, .h = 5, .w = 7, .c_in = 48, .c_out = 3, .kernel = {1, 1, 1}, .padding = {0, 0, 0}}},
    {"pointwise_stride_2",
     {.n = 1,
      .d = 5,
      .h = 6,
      .w = 7,
      .c_in = 16,
      .c_out = 20,
      .kernel = {1, 1, 1},
      .stride = {2, 2, 2},
      .padding = {0, 0, 0}}},
};

// What a network of four levels asks for at a patch of 64 x 64 x 64: for benchmarks.
inline const std::vector<Conv3dCase> kConv3dBenchmarkCases = {
    {"2to12_64", {.d = 64, .h = 64, .w = 64, .c_in = 2, .c_out = 12}},
    {"4to24_64", {.d = 64, .h = 64, .w = 64, .c_in = 4, .c_out = 24}},
    {"12to12_64", {.d = 64, .h = 64, .w = 64, .c_in = 12, .c_out = 12}},
    {"24to24_64", {.d = 64, .h = 64, .w = 64, .c_in = 24, .c_out = 24}},
    {"48to24_64", {.d = 64, .h = 64, .w = 64, .c_in = 48, .c_out = 24}},
    {"48to48_64", {.d = 64, .h = 64, .w = 64, .c_in = 48, .c_out = 48}},
    {"24to48_64_stride_2", {.d = 64, .h = 64, .w = 64, .c_in = 24, .c_out = 48, .stride = {2, 2, 2}}},
    {"48to48_32", {.d = 32, .h = 32, .w = 32, .c_in = 48, .c_out = 48}},
    {"96to96_16", {.d = 16, .h = 16, .w = 16, .c_in = 96, .c_out = 96}},
    {"192to192_8", {.d = 8, .h = 8, .w = 8, .c_in = 192, .c_out = 192}},
    {"192to192_4", {.d = 4, .h = 4, .w = 4, .c_in = 192, .c_out = 192}},
    {"24to3_64_pointwise",
     {.d = 64, .h = 64, .w = 64, .c_in = 24, .c_out = 3, .kernel = {1, 1, 1}, .padding = {0, 0, 0}}},
    {"48to48_64_pointwise",
     {.d = 64, .h = 64, .w = 64, .c_in = 48, .c_out = 48, .kernel = {1, 1, 1}, .padding = {0, 0, 0}}},
};

}  // namespace vesal::kernels
