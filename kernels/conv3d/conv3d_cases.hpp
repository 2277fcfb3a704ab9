// The shapes that conv3d is tested on. The CUDA kernel's tile is 128 voxels x 32 or 64 channels of a group x
// 16 of (tap, channel), groups of fewer than 8 channels go without tiles, a warp over 32 channels; the CPU's
// vectors hold 16 channels, and depthwise convolutions take 64 channels at a time.
#pragma once

#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
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
    {"dilation_2",
     {.d = 7, .h = 6, .w = 9, .c_in = 8, .c_out = 12, .padding = {2, 2, 2}, .dilation = {2, 2, 2}}},
    {"dilation_3_few_channels",
     {.n = 2, .d = 5, .h = 7, .w = 8, .c_in = 3, .c_out = 5, .padding = {3, 3, 3}, .dilation = {3, 3, 3}}},
    {"dilation_16_meshnet",
     {.d = 6, .h = 19, .w = 34, .c_in = 5, .c_out = 5, .padding = {16, 16, 16}, .dilation = {16, 16, 16}}},
    {"dilation_2_stride_2",
     {.d = 7,
      .h = 8,
      .w = 9,
      .c_in = 4,
      .c_out = 6,
      .stride = {2, 2, 2},
      .padding = {2, 2, 2},
      .dilation = {2, 2, 2}}},
    {"dilation_3_stride_2",
     {.d = 9,
      .h = 8,
      .w = 7,
      .c_in = 4,
      .c_out = 6,
      .stride = {2, 2, 2},
      .padding = {3, 2, 1},
      .dilation = {3, 3, 3}}},
    {"dilation_6_stride_4",
     {.d = 1,
      .h = 17,
      .w = 18,
      .c_in = 8,
      .c_out = 4,
      .kernel = {1, 5, 4},
      .stride = {1, 4, 4},
      .padding = {0, 12, 9},
      .dilation = {1, 6, 6}}},
    {"dilation_without_padding",
     {.d = 5, .h = 7, .w = 6, .c_in = 17, .c_out = 9, .padding = {0, 0, 0}, .dilation = {2, 3, 1}}},
    {"two_groups", {.n = 2, .d = 4, .h = 5, .w = 3, .c_in = 16, .c_out = 24, .groups = 2}},
    {"two_groups_at_tile", {.d = 3, .h = 4, .w = 5, .c_in = 32, .c_out = 64, .groups = 2}},
    {"two_groups_above_tile", {.d = 2, .h = 4, .w = 5, .c_in = 34, .c_out = 66, .groups = 2}},
    {"three_groups_stride_2_dilation_3",
     {.d = 6,
      .h = 7,
      .w = 5,
      .c_in = 27,
      .c_out = 24,
      .stride = {2, 2, 2},
      .padding = {3, 3, 3},
      .dilation = {3, 3, 3},
      .groups = 3}},
    {"groups_of_7", {.d = 3, .h = 4, .w = 5, .c_in = 21, .c_out = 27, .groups = 3}},
    {"groups_of_8", {.d = 3, .h = 4, .w = 5, .c_in = 24, .c_out = 24, .groups = 3}},
    {"groups_of_2",
     {.n = 2, .d = 3, .h = 4, .w = 5, .c_in = 8, .c_out = 12, .stride = {1, 2, 1}, .groups = 4}},
    {"groups_of_2_to_1", {.d = 3, .h = 4, .w = 5, .c_in = 12, .c_out = 6, .groups = 6}},
    {"pointwise_groups",
     {.n = 2,
      .d = 3,
      .h = 4,
      .w = 5,
      .c_in = 18,
      .c_out = 36,
      .kernel = {1, 1, 1},
      .padding = {0, 0, 0},
      .groups = 2}},
    {"depthwise_below_a_vector", {.n = 2, .d = 4, .h = 3, .w = 6, .c_in = 15, .c_out = 15, .groups = 15}},
    {"depthwise_of_a_vector", {.d = 4, .h = 5, .w = 3, .c_in = 16, .c_out = 16, .groups = 16}},
    {"depthwise_above_a_vector", {.d = 3, .h = 4, .w = 5, .c_in = 17, .c_out = 17, .groups = 17}},
    {"depthwise_of_31", {.d = 2, .h = 4, .w = 5, .c_in = 31, .c_out = 31, .stride = {2, 1, 2}, .groups = 31}},
    {"depthwise_of_33", {.d = 3, .h = 3, .w = 3, .c_in = 33, .c_out = 33, .stride = {2, 2, 2}, .groups = 33}},
    {"depthwise_of_64", {.d = 3, .h = 2, .w = 4, .c_in = 64, .c_out = 64, .groups = 64}},
    {"depthwise_of_65", {.d = 2, .h = 3, .w = 4, .c_in = 65, .c_out = 65, .groups = 65}},
    {"depthwise_one_voxel", {.c_in = 5, .c_out = 5, .groups = 5}},
    {"depthwise_multiplier_2",
     {.n = 2, .d = 3, .h = 4, .w = 5, .c_in = 18, .c_out = 36, .stride = {1, 2, 3}, .groups = 18}},
    {"depthwise_multiplier_5", {.d = 4, .h = 3, .w = 5, .c_in = 3, .c_out = 15, .groups = 3}},
    {"depthwise_dilation_2_kernel_7",
     {.d = 1,
      .h = 14,
      .w = 13,
      .c_in = 20,
      .c_out = 20,
      .kernel = {1, 7, 7},
      .stride = {1, 2, 1},
      .padding = {0, 6, 6},
      .dilation = {1, 2, 2},
      .groups = 20}},
    {"depthwise_pointwise",
     {.d = 3, .h = 4, .w = 5, .c_in = 6, .c_out = 6, .kernel = {1, 1, 1}, .padding = {0, 0, 0}, .groups = 6}},
    {"padding_behind_only",
     {.d = 4,
      .h = 5,
      .w = 6,
      .c_in = 6,
      .c_out = 8,
      .padding = {0, 0, 0},
      .padding_end = std::array{1, 2, 1}}},
    {"padding_in_front_only",
     {.n = 2,
      .d = 4,
      .h = 5,
      .w = 6,
      .c_in = 20,
      .c_out = 8,
      .padding = {2, 1, 2},
      .padding_end = std::array{0, 0, 0}}},
    {"padding_as_tensorflow_same",
     {.d = 6,
      .h = 7,
      .w = 8,
      .c_in = 5,
      .c_out = 6,
      .stride = {2, 2, 2},
      .padding = {0, 1, 0},
      .padding_end = std::array{1, 1, 1}}},
    {"padding_differs_pointwise",
     {.d = 2,
      .h = 3,
      .w = 4,
      .c_in = 6,
      .c_out = 5,
      .kernel = {1, 1, 1},
      .padding = {0, 0, 0},
      .padding_end = std::array{1, 0, 2}}},
    {"padding_differs_depthwise",
     {.d = 4,
      .h = 5,
      .w = 6,
      .c_in = 12,
      .c_out = 12,
      .kernel = {2, 3, 4},
      .stride = {1, 2, 2},
      .padding = {0, 3, 1},
      .groups = 12,
      .padding_end = std::array{1, 0, 4}}},
    {"kernel_6", {.d = 6, .h = 7, .w = 5, .c_in = 3, .c_out = 4, .kernel = {6, 6, 6}, .padding = {3, 2, 3}}},
    {"kernel_7", {.d = 8, .h = 7, .w = 6, .c_in = 2, .c_out = 3, .kernel = {7, 7, 7}, .padding = {3, 3, 3}}},
    {"kernel_7_stride_2_image",
     {.n = 2,
      .d = 1,
      .h = 15,
      .w = 13,
      .c_in = 3,
      .c_out = 10,
      .kernel = {1, 7, 7},
      .stride = {1, 2, 2},
      .padding = {0, 3, 3}}},
    {"kernel_5_image",
     {.d = 1, .h = 9, .w = 8, .c_in = 6, .c_out = 5, .kernel = {1, 5, 5}, .padding = {0, 2, 2}}},
};

// A shape of the contract at random, small enough for the emulator: at most 1 MFLOP a pass.
inline Conv3dParams draw_conv3d(RandomStream& random) {
  const auto among = [&](int64_t low, int64_t high) { return low + random.below(high - low + 1); };
  for (;;) {
    Conv3dParams p{.n = among(1, 2), .d = among(1, 9), .h = among(1, 9), .w = among(1, 14)};
    switch (random.below(4)) {
      case 0:  // depthwise
        p.groups = p.c_in = among(1, 40);
        p.c_out = p.c_in * among(1, 3);
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
    std::array<int, 3> end{};
    bool fits = true;
    for (size_t axis = 0; axis < 3; ++axis) {
      p.kernel[axis] = static_cast<int>(among(1, random.below(3) == 0 ? 7 : 3));
      p.stride[axis] = static_cast<int>(among(1, 3));
      p.dilation[axis] = static_cast<int>(among(1, 3));
      p.padding[axis] = static_cast<int>(random.below(p.reach(axis) + 1));
      end[axis] = static_cast<int>(random.below(p.reach(axis) + 1));
    }
    if (random.below(2) == 0) {
      p.padding_end = end;
    }
    const std::array extents{p.d, p.h, p.w};
    for (size_t axis = 0; axis < 3; ++axis) {
      fits = fits && extents[axis] + p.padding[axis] + p.far_padding()[axis] >= p.reach(axis);
    }
    if (fits && 2 * p.output_count() * p.taps() * p.group_in() <= 1'000'000) {
      return p;
    }
  }
}

// For benchmarks: what a network of four levels asks for at a patch of 64 x 64 x 64, then what larger patches
// and other networks do (nnU-Net and the fusion network at 128, the stem of VeloxSeg and the patch embedding
// of SwinUNETR at 96, MeshNet).
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
    {"48_64_depthwise", {.d = 64, .h = 64, .w = 64, .c_in = 48, .c_out = 48, .groups = 48}},
    {"48_64_depthwise_7",
     {.d = 64,
      .h = 64,
      .w = 64,
      .c_in = 48,
      .c_out = 48,
      .kernel = {7, 7, 7},
      .padding = {3, 3, 3},
      .groups = 48}},
    {"48to48_64_8_groups", {.d = 64, .h = 64, .w = 64, .c_in = 48, .c_out = 48, .groups = 8}},
    {"21to21_64_dilation_8",
     {.d = 64, .h = 64, .w = 64, .c_in = 21, .c_out = 21, .padding = {8, 8, 8}, .dilation = {8, 8, 8}}},
    {"32to32_128_nnunet", {.d = 128, .h = 128, .w = 128, .c_in = 32, .c_out = 32}},
    {"32to64_128_stride_2_nnunet",
     {.d = 128, .h = 128, .w = 128, .c_in = 32, .c_out = 64, .stride = {2, 2, 2}}},
    {"12to12_128_fusion", {.d = 128, .h = 128, .w = 128, .c_in = 12, .c_out = 12}},
    {"1to16_96_kernel_7_stride_4_veloxseg",
     {.d = 96,
      .h = 96,
      .w = 96,
      .c_in = 1,
      .c_out = 16,
      .kernel = {7, 7, 7},
      .stride = {4, 4, 4},
      .padding = {3, 3, 3}}},
    {"32_24_depthwise_5_veloxseg",
     {.d = 24,
      .h = 24,
      .w = 24,
      .c_in = 32,
      .c_out = 32,
      .kernel = {5, 5, 5},
      .padding = {2, 2, 2},
      .groups = 32}},
    {"4to48_96_kernel_2_stride_2_swinunetr",
     {.d = 96,
      .h = 96,
      .w = 96,
      .c_in = 4,
      .c_out = 48,
      .kernel = {2, 2, 2},
      .stride = {2, 2, 2},
      .padding = {0, 0, 0}}},
    {"5to5_96_dilation_16_meshnet",
     {.d = 96, .h = 96, .w = 96, .c_in = 5, .c_out = 5, .padding = {16, 16, 16}, .dilation = {16, 16, 16}}},
};

// Of any pass: the products are the same. Taps in the padding count.
inline Work conv3d_work(const Conv3dParams& p) {
  return {.flops = 2.0 * static_cast<double>(p.output_count() * p.taps() * p.group_in()),
          .bytes = 4.0 * static_cast<double>(p.input_count() + p.weight_count() + p.output_count())};
}

}  // namespace vesal::kernels
