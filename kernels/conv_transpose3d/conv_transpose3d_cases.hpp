// The shapes that conv_transpose3d is tested on. On a GPU the tile is 128 output voxels of one residue x 32
// or 64 channels; on the CPU taps that do not overlap are taken in blocks of input voxels.
#pragma once

#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/conv_transpose3d/conv_transpose3d.hpp"

namespace vesal::kernels {

struct ConvTranspose3dCase {
  std::string name;
  ConvTranspose3dParams params;
};

inline const std::vector<ConvTranspose3dCase> kConvTranspose3dCases = {
    {"one_voxel", {.d = 1, .h = 1, .w = 1, .c_in = 1, .c_out = 1}},
    {"kernel_4", {.d = 3, .h = 4, .w = 2, .c_in = 8, .c_out = 4}},
    {"kernel_4_batch_ragged", {.n = 2, .d = 2, .h = 3, .w = 3, .c_in = 5, .c_out = 7}},
    {"kernel_4_wide", {.d = 2, .h = 2, .w = 4, .c_in = 24, .c_out = 33}},
    {"kernel_4_65", {.d = 1, .h = 2, .w = 2, .c_in = 12, .c_out = 65}},
    {"kernel_2",
     {.d = 4,
      .h = 3,
      .w = 5,
      .c_in = 16,
      .c_out = 8,
      .kernel = {2, 2, 2},
      .stride = {2, 2, 2},
      .padding = {0, 0, 0}}},
    {"kernel_2_batch_ragged",
     {.n = 2,
      .d = 3,
      .h = 2,
      .w = 3,
      .c_in = 6,
      .c_out = 3,
      .kernel = {2, 2, 2},
      .stride = {2, 2, 2},
      .padding = {0, 0, 0}}},
    {"kernel_2_of_127",
     {.d = 1,
      .h = 1,
      .w = 127,
      .c_in = 4,
      .c_out = 5,
      .kernel = {1, 1, 2},
      .stride = {1, 1, 2},
      .padding = {0, 0, 0}}},
    {"kernel_2_of_128",
     {.d = 1,
      .h = 1,
      .w = 128,
      .c_in = 4,
      .c_out = 4,
      .kernel = {1, 1, 2},
      .stride = {1, 1, 2},
      .padding = {0, 0, 0}}},
    {"kernel_2_of_129",
     {.d = 1,
      .h = 129,
      .w = 1,
      .c_in = 3,
      .c_out = 4,
      .kernel = {1, 2, 1},
      .stride = {1, 2, 1},
      .padding = {0, 0, 0}}},
    {"patches_by_axis",
     {.d = 3,
      .h = 4,
      .w = 2,
      .c_in = 4,
      .c_out = 6,
      .kernel = {1, 2, 3},
      .stride = {1, 2, 3},
      .padding = {0, 0, 0}}},
    {"kernel_3", {.d = 3, .h = 3, .w = 4, .c_in = 6, .c_out = 8, .kernel = {3, 3, 3}}},
    {"kernel_3_stride_1",
     {.d = 3, .h = 4, .w = 5, .c_in = 4, .c_out = 20, .kernel = {3, 3, 3}, .stride = {1, 1, 1}}},
    {"kernel_5", {.d = 2, .h = 3, .w = 3, .c_in = 3, .c_out = 4, .kernel = {5, 5, 5}, .padding = {2, 1, 4}}},
    {"stride_beyond_kernel",
     {.d = 3,
      .h = 2,
      .w = 3,
      .c_in = 4,
      .c_out = 6,
      .kernel = {2, 2, 2},
      .stride = {3, 3, 3},
      .padding = {0, 0, 0}}},
    {"flat_image",
     {.n = 2,
      .d = 1,
      .h = 5,
      .w = 4,
      .c_in = 8,
      .c_out = 8,
      .kernel = {1, 4, 4},
      .stride = {1, 2, 2},
      .padding = {0, 1, 1}}},
    {"output_padding_kernel_3",
     {.n = 2,
      .d = 3,
      .h = 2,
      .w = 4,
      .c_in = 6,
      .c_out = 5,
      .kernel = {3, 3, 3},
      .output_padding = {1, 1, 1}}},
    {"output_padding_kernel_2",
     {.d = 3,
      .h = 2,
      .w = 3,
      .c_in = 4,
      .c_out = 8,
      .kernel = {2, 2, 2},
      .stride = {2, 2, 2},
      .padding = {0, 0, 0},
      .output_padding = {1, 0, 1}}},
    {"output_padding_stride_beyond_kernel",
     {.d = 2,
      .h = 3,
      .w = 2,
      .c_in = 5,
      .c_out = 6,
      .kernel = {2, 1, 2},
      .stride = {4, 3, 3},
      .padding = {0, 0, 1},
      .output_padding = {3, 2, 1}}},
    {"output_padding_makes_the_only_voxel",
     {.d = 1,
      .h = 1,
      .w = 1,
      .c_in = 3,
      .c_out = 2,
      .kernel = {2, 2, 2},
      .stride = {2, 2, 2},
      .padding = {1, 1, 1},
      .output_padding = {1, 1, 1}}},
    {"two_groups", {.n = 2, .d = 2, .h = 3, .w = 2, .c_in = 16, .c_out = 20, .groups = 2}},
    {"two_groups_of_33", {.d = 2, .h = 2, .w = 2, .c_in = 18, .c_out = 66, .kernel = {3, 3, 3}, .groups = 2}},
    {"two_groups_of_patches",
     {.d = 3,
      .h = 2,
      .w = 4,
      .c_in = 8,
      .c_out = 16,
      .kernel = {2, 2, 2},
      .stride = {2, 2, 2},
      .padding = {0, 0, 0},
      .groups = 2}},
    {"groups_of_3", {.d = 2, .h = 2, .w = 3, .c_in = 9, .c_out = 12, .groups = 3}},
    {"depthwise", {.n = 2, .d = 2, .h = 3, .w = 4, .c_in = 18, .c_out = 18, .groups = 18}},
    {"depthwise_multiplier_2",
     {.d = 3,
      .h = 2,
      .w = 3,
      .c_in = 10,
      .c_out = 20,
      .kernel = {3, 3, 3},
      .output_padding = {1, 0, 1},
      .groups = 10}},
    {"depthwise_two_to_one", {.d = 2, .h = 3, .w = 2, .c_in = 34, .c_out = 17, .groups = 17}},
    {"dilation_2",
     {.d = 3,
      .h = 2,
      .w = 4,
      .c_in = 6,
      .c_out = 7,
      .kernel = {3, 3, 3},
      .output_padding = {1, 1, 0},
      .dilation = {2, 2, 2}}},
    {"dilation_3_stride_3",
     {.d = 2,
      .h = 3,
      .w = 2,
      .c_in = 12,
      .c_out = 8,
      .kernel = {2, 3, 2},
      .stride = {3, 3, 2},
      .padding = {1, 2, 0},
      .output_padding = {2, 0, 1},
      .dilation = {3, 3, 3}}},
    {"kernel_7", {.d = 2, .h = 3, .w = 2, .c_in = 3, .c_out = 2, .kernel = {7, 7, 7}, .padding = {3, 2, 3}}},
    {"kernel_6_image",
     {.n = 2,
      .d = 1,
      .h = 4,
      .w = 5,
      .c_in = 5,
      .c_out = 4,
      .kernel = {1, 6, 7},
      .stride = {1, 3, 2},
      .padding = {0, 2, 3},
      .output_padding = {0, 1, 1}}},
};

// A shape of the contract at random, small enough for the emulator: at most 1 MFLOP a pass.
inline ConvTranspose3dParams draw_conv_transpose3d(RandomStream& random) {
  const auto among = [&](int64_t low, int64_t high) { return low + random.below(high - low + 1); };
  for (;;) {
    ConvTranspose3dParams p{.n = among(1, 2), .d = among(1, 5), .h = among(1, 5), .w = among(1, 8)};
    switch (random.below(4)) {
      case 0:  // depthwise
        p.groups = p.c_out = among(1, 40);
        p.c_in = p.c_out * among(1, 2);
        break;
      case 1:
        p.groups = among(2, 4);
        p.c_in = p.groups * among(1, 12);
        p.c_out = p.groups * among(1, 20);
        break;
      default:
        p.c_in = among(1, 36);
        p.c_out = among(1, 40);
    }
    for (size_t axis = 0; axis < 3; ++axis) {
      p.kernel[axis] = static_cast<int>(among(1, random.below(3) == 0 ? 7 : 3));
      p.stride[axis] = static_cast<int>(among(1, 3));
      p.dilation[axis] = static_cast<int>(random.below(3) == 0 ? among(1, 3) : 1);
      p.padding[axis] = static_cast<int>(random.below(p.dilation[axis] * (p.kernel[axis] - 1) + 1));
      p.output_padding[axis] = static_cast<int>(random.below(p.stride[axis]));
    }
    if (random.below(4) == 0) {  // the CPU's way for taps that do not overlap
      p.stride = p.kernel;
      p.padding = p.output_padding = {0, 0, 0};
      p.dilation = {1, 1, 1};
    }
    if (p.out_d() >= 1 && p.out_h() >= 1 && p.out_w() >= 1 &&
        2 * p.input_count() * p.taps() * (p.c_out / p.groups) <= 1'000'000) {
      return p;
    }
  }
}

// What decoders ask for: for benchmarks.
inline const std::vector<ConvTranspose3dCase> kConvTranspose3dBenchmarkCases = {
    {"64to32_32_k2",
     {.d = 32,
      .h = 32,
      .w = 32,
      .c_in = 64,
      .c_out = 32,
      .kernel = {2, 2, 2},
      .stride = {2, 2, 2},
      .padding = {0, 0, 0}}},
    {"48to24_32_k2",
     {.d = 32,
      .h = 32,
      .w = 32,
      .c_in = 48,
      .c_out = 24,
      .kernel = {2, 2, 2},
      .stride = {2, 2, 2},
      .padding = {0, 0, 0}}},
    {"96to48_16_k2",
     {.d = 16,
      .h = 16,
      .w = 16,
      .c_in = 96,
      .c_out = 48,
      .kernel = {2, 2, 2},
      .stride = {2, 2, 2},
      .padding = {0, 0, 0}}},
    {"192to96_8_k2",
     {.d = 8,
      .h = 8,
      .w = 8,
      .c_in = 192,
      .c_out = 96,
      .kernel = {2, 2, 2},
      .stride = {2, 2, 2},
      .padding = {0, 0, 0}}},
    {"64to32_32_k4", {.d = 32, .h = 32, .w = 32, .c_in = 64, .c_out = 32}},
    {"48to24_32_k4", {.d = 32, .h = 32, .w = 32, .c_in = 48, .c_out = 24}},
    {"64to32_64_k2_nnunet",
     {.d = 64,
      .h = 64,
      .w = 64,
      .c_in = 64,
      .c_out = 32,
      .kernel = {2, 2, 2},
      .stride = {2, 2, 2},
      .padding = {0, 0, 0}}},
    {"24to12_64_k4_fusion", {.d = 64, .h = 64, .w = 64, .c_in = 24, .c_out = 12}},
};

// Of any pass: the products are the same. Taps that padding cuts off count.
inline Work conv_transpose3d_work(const ConvTranspose3dParams& p) {
  return {.flops = 2.0 * static_cast<double>(p.input_count() * p.taps() * (p.c_out / p.groups)),
          .bytes = 4.0 * static_cast<double>(p.input_count() + p.weight_count() + p.output_count())};
}

}  // namespace vesal::kernels
