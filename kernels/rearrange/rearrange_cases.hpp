// The sizes that rearrangements are tested and measured with.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/rearrange/rearrange.hpp"

namespace vesal::kernels {

struct PadCropCase {
  std::string name;
  PadCropParams params;
};

// A block takes a row of W * C elements, 256 at a time.
inline const std::vector<PadCropCase> kPadCropCases = {
    {"identity", {.n = 1, .d = 2, .h = 3, .w = 4, .out_d = 2, .out_h = 3, .out_w = 4, .c = 2}},
    {"pad_high", {.n = 2, .d = 3, .h = 3, .w = 3, .out_d = 4, .out_h = 4, .out_w = 4, .c = 5, .value = 2.5f}},
    {"pad_low",
     {.n = 1, .d = 1, .h = 5, .w = 2, .out_d = 3, .out_h = 8, .out_w = 5, .c = 1, .low = {1, 2, 3}}},
    {"crop",
     {.n = 1, .d = 5, .h = 6, .w = 7, .out_d = 3, .out_h = 3, .out_w = 3, .c = 3, .low = {-1, -2, -3}}},
    {"pad_and_crop",
     {.n = 2,
      .d = 4,
      .h = 4,
      .w = 4,
      .out_d = 6,
      .out_h = 2,
      .out_w = 5,
      .c = 4,
      .low = {1, -1, 2},
      .value = -1.0f}},
    {"nothing_left",
     {.n = 1,
      .d = 2,
      .h = 2,
      .w = 2,
      .out_d = 2,
      .out_h = 2,
      .out_w = 2,
      .c = 1,
      .low = {0, 0, 9},
      .value = 7.0f}},
    {"no_samples", {.n = 0, .d = 2, .h = 3, .w = 4, .out_d = 3, .out_h = 2, .out_w = 4, .c = 2}},
    {"from_nothing",
     {.n = 2, .d = 2, .h = 0, .w = 4, .out_d = 3, .out_h = 2, .out_w = 4, .c = 2, .value = 3}},
    {"to_nothing", {.n = 2, .d = 2, .h = 3, .w = 4, .out_d = 3, .out_h = 2, .out_w = 0, .c = 2}},
    {"one_voxel", {.n = 1, .d = 1, .h = 1, .w = 1, .out_d = 1, .out_h = 1, .out_w = 1, .c = 1}},
    {"row_minus_one",
     {.n = 1, .d = 1, .h = 2, .w = 83, .out_d = 1, .out_h = 2, .out_w = 85, .c = 3, .low = {0, 0, 1}}},
    {"row",
     {.n = 1, .d = 1, .h = 2, .w = 16, .out_d = 1, .out_h = 2, .out_w = 16, .c = 16, .low = {0, 1, -1}}},
    {"row_plus_one", {.n = 1, .d = 1, .h = 1, .w = 256, .out_d = 1, .out_h = 1, .out_w = 257, .c = 1}},
};

struct CopyChannelsCase {
  std::string name;
  CopyChannelsParams params;
};

// A tile holds at most 32 channels.
inline const std::vector<CopyChannelsCase> kCopyChannelsCases = {
    {"whole", {.rows = 9, .source_channels = 24, .target_channels = 24, .count = 24}},
    {"concat_first", {.rows = 33, .source_channels = 24, .target_channels = 72, .count = 24}},
    {"concat_second",
     {.rows = 33, .source_channels = 48, .target_channels = 72, .target_offset = 24, .count = 48}},
    {"split", {.rows = 7, .source_channels = 65, .source_offset = 32, .target_channels = 33, .count = 33}},
    {"middle",
     {.rows = 17,
      .source_channels = 9,
      .source_offset = 2,
      .target_channels = 11,
      .target_offset = 7,
      .count = 3}},
    {"single",
     {.rows = 300,
      .source_channels = 3,
      .source_offset = 2,
      .target_channels = 2,
      .target_offset = 1,
      .count = 1}},
    {"tile_minus_one",
     {.rows = 5, .source_channels = 31, .target_channels = 40, .target_offset = 9, .count = 31}},
    {"tile", {.rows = 5, .source_channels = 32, .target_channels = 64, .target_offset = 32, .count = 32}},
    {"none", {.rows = 5, .source_channels = 4, .target_channels = 4, .count = 0}},
    {"no_rows", {.rows = 0, .source_channels = 4, .target_channels = 4, .count = 2}},
    {"one", {.rows = 1, .source_channels = 1, .target_channels = 1, .count = 1}},
};

struct RouteChannelsCase {
  std::string name;
  int64_t n, voxels, channels, out;
  std::vector<int32_t> source;  // [n, out]
};

inline const std::vector<RouteChannelsCase> kRouteChannelsCases = {
    {"edge_inputs", 3, 65, 4, 2, {3, 1, 2, 0, -1, 1}},
    {"repeat", 1, 255, 2, 3, {1, 1, 0}},
    {"all_absent", 2, 257, 4, 1, {-1, -1}},
    {"no_samples", 0, 7, 3, 2, {}},
    {"no_voxels", 1, 0, 3, 2, {0, 2}},
    {"one", 1, 1, 1, 1, {0}},
};

// For benchmarks: a decoder's features brought to the size of their skip connection, and a volume cropped to
// a sliding window's patch.
inline const std::vector<PadCropCase> kPadCropBenchmarkCases = {
    {"32_62_to_64",
     {.n = 1, .d = 62, .h = 62, .w = 62, .out_d = 64, .out_h = 64, .out_w = 64, .c = 32, .low = {1, 1, 1}}},
    {"4_160_to_128",
     {.n = 1,
      .d = 160,
      .h = 160,
      .w = 160,
      .out_d = 128,
      .out_h = 128,
      .out_w = 128,
      .c = 4,
      .low = {-16, -16, -16}}},
};

// Of either pass: the voxels that both volumes have, and what is written.
inline Work pad_crop_work(const PadCropParams& p, bool backward) {
  const auto common = [](int64_t in, int64_t out, int64_t low) {
    return static_cast<double>(std::max<int64_t>(0, std::min(in + low, out) - std::max<int64_t>(low, 0)));
  };
  const double read =
      common(p.d, p.out_d, p.low[0]) * common(p.h, p.out_h, p.low[1]) * common(p.w, p.out_w, p.low[2]);
  const auto written = static_cast<double>(backward ? p.d * p.h * p.w : p.out_d * p.out_h * p.out_w);
  return {.bytes = 4.0 * static_cast<double>(p.n * p.c) * (read + written)};
}

// For benchmarks: half of a U-Net's concatenation at 64^3 (or a split, the other way round), the narrow one
// of an input's modalities, and a third of a transformer's tokens.
inline const std::vector<CopyChannelsCase> kCopyChannelsBenchmarkCases = {
    {"32_of_64_at_64",
     {.rows = 262144, .source_channels = 32, .target_channels = 64, .target_offset = 32, .count = 32}},
    {"1_of_4_at_128",
     {.rows = 2097152, .source_channels = 4, .source_offset = 2, .target_channels = 1, .count = 1}},
    {"48_of_144_at_32",
     {.rows = 32768, .source_channels = 144, .source_offset = 48, .target_channels = 48, .count = 48}},
};

inline Work copy_channels_work(const CopyChannelsParams& p, bool accumulate) {
  return {.bytes = 4.0 * static_cast<double>(p.rows * p.count) * (accumulate ? 3 : 2)};
}

// For benchmarks: four modalities in another order.
inline const std::vector<RouteChannelsCase> kRouteChannelsBenchmarkCases = {
    {"4_at_128", 1, 2097152, 4, 4, {3, 1, 0, 2}},
};

inline Work route_channels_work(const RouteChannelsCase& c) {
  return {.bytes = 4.0 * static_cast<double>(c.n * c.voxels * 2 * c.out)};
}

inline PadCropCase random_pad_crop_case(RandomStream& random) {
  PadCropCase c;
  PadCropParams& p = c.params;
  p.n = 1 + random.below(2);
  p.c = 1 + random.below(random.below(4) == 0 ? 40 : 4);
  p.d = 1 + random.below(6), p.h = 1 + random.below(6), p.w = 1 + random.below(9);
  p.out_d = 1 + random.below(7), p.out_h = 1 + random.below(7), p.out_w = 1 + random.below(10);
  p.low = {random.below(9) - 4, random.below(9) - 4, random.below(9) - 4};
  p.value = random.normal();
  c.name = concat("[", p.n, ", ", p.d, ", ", p.h, ", ", p.w, ", ", p.c, "] to ", p.out_d, " x ", p.out_h,
                  " x ", p.out_w, ", low ", p.low[0], " ", p.low[1], " ", p.low[2]);
  return c;
}

inline CopyChannelsCase random_copy_channels_case(RandomStream& random) {
  CopyChannelsCase c;
  CopyChannelsParams& p = c.params;
  p.rows = 1 + random.below(random.below(4) == 0 ? 300 : 20);
  p.count = 1 + random.below(random.below(4) == 0 ? 60 : 8);
  p.source_offset = random.below(5);
  p.target_offset = random.below(5);
  p.source_channels = p.source_offset + p.count + random.below(5);
  p.target_channels = p.target_offset + p.count + random.below(5);
  c.name = concat(p.rows, " rows, ", p.count, " channels, ", p.source_offset, " of ", p.source_channels,
                  " to ", p.target_offset, " of ", p.target_channels);
  return c;
}

inline RouteChannelsCase random_route_channels_case(RandomStream& random) {
  RouteChannelsCase c{"",
                      1 + random.below(3),
                      1 + random.below(random.below(4) == 0 ? 300 : 20),
                      1 + random.below(6),
                      1 + random.below(5),
                      {}};
  for (int64_t i = 0; i < c.n * c.out; ++i) {
    c.source.push_back(static_cast<int32_t>(random.below(c.channels + 1)) - 1);
  }
  c.name = concat("[", c.n, ", ", c.voxels, ", ", c.channels, "] to ", c.out);
  return c;
}

}  // namespace vesal::kernels
