// Tiles cover everything, weights are positive, and blending equals a plain sum.
#include "imaging/sliding_window.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "support.hpp"

namespace vesal::imaging {
namespace {

TEST(TileStarts, KnownRows) {
  // nnU-Net's own rule, computed by hand: ceil((155 - 128) / 64) + 1 = 2 tiles, and so on.
  EXPECT_EQ(tile_starts(155, 128, 0.5), (std::vector<int64_t>{0, 27}));
  EXPECT_EQ(tile_starts(240, 128, 0.5), (std::vector<int64_t>{0, 56, 112}));
  EXPECT_EQ(tile_starts(128, 128, 0.5), (std::vector<int64_t>{0}));
  EXPECT_EQ(tile_starts(129, 128, 0.5), (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(tile_starts(192, 64, 0.0), (std::vector<int64_t>{0, 64, 128}));
  EXPECT_EQ(tile_starts(100, 128, 0.5), (std::vector<int64_t>{-14}));
  EXPECT_EQ(tile_starts(127, 128, 0.5), (std::vector<int64_t>{0}));
  expect_error<UsageError>([] { tile_starts(10, 4, 1.0); }, {"overlap 1"});
  expect_error<UsageError>([] { tile_starts(10, 4, -0.1); }, {"overlap"});
  expect_error<UsageError>([] { tile_starts(0, 4, 0.5); }, {"at least 1"});
}

TEST(TileStarts, CoverBothEndsWithTheAskedOverlap) {
  for (int64_t tile : {1, 2, 3, 16, 31, 32, 33}) {
    for (int64_t extent = 1; extent <= 100; ++extent) {
      for (const double overlap : {0.0, 0.25, 0.5, 0.625, 0.9}) {
        const auto starts = tile_starts(extent, tile, overlap);
        if (extent <= tile) {
          ASSERT_EQ(starts.size(), 1u);
          ASSERT_LE(starts[0], 0);
          ASSERT_GE(starts[0] + tile, extent);
          continue;
        }
        ASSERT_EQ(starts.front(), 0);
        ASSERT_EQ(starts.back(), extent - tile);
        const double step = std::max(1.0, static_cast<double>(tile) * (1 - overlap));
        for (size_t i = 1; i < starts.size(); ++i) {
          ASSERT_GT(starts[i], starts[i - 1]);
          ASSERT_LE(static_cast<double>(starts[i] - starts[i - 1]), step + 1)
              << "rounding moves a start by half a voxel";
        }
      }
    }
  }
}

TEST(GaussianWeights, PositiveSymmetricAndOneAtTheCentre) {
  for (const Size3 tile : {Size3{16, 16, 16}, Size3{9, 12, 5}, Size3{1, 1, 1}, Size3{128, 2, 3}}) {
    const auto weights = gaussian_weights(tile);
    ASSERT_EQ(static_cast<int64_t>(weights.size()), tile.voxels());
    EXPECT_FLOAT_EQ(*std::max_element(weights.begin(), weights.end()), 1.0f);
    EXPECT_GE(*std::min_element(weights.begin(), weights.end()), std::numeric_limits<float>::min());
    for (size_t i = 0; i < weights.size(); ++i) {
      ASSERT_FLOAT_EQ(weights[i], weights[weights.size() - 1 - i]);
    }
  }
  // One sigma (an eighth of the tile) from the centre.
  const auto line = gaussian_weights({17, 1, 1});
  EXPECT_NEAR(line[8 + 2], std::exp(-0.5 * std::pow(2.0 / (17.0 / 8.0), 2)), 1e-6);
}

struct Blended {
  std::vector<float> values;
  std::vector<std::pair<int64_t, int64_t>> slabs;
};

template <class Value>
Blended blend(Size3 volume, Size3 tile, double overlap, int64_t channels, const Value& value) {
  Blended result;
  result.values.assign(static_cast<size_t>(volume.voxels() * channels),
                       std::numeric_limits<float>::quiet_NaN());
  const int64_t plane = volume.x * volume.y * channels;
  SlabBlender blender(volume, tile, channels, [&](int64_t begin, int64_t end, std::span<const float> values) {
    EXPECT_EQ(static_cast<int64_t>(values.size()), (end - begin) * plane);
    std::copy(values.begin(), values.end(), result.values.begin() + begin * plane);
    result.slabs.emplace_back(begin, end);
  });
  size_t number = 0;
  for (const Size3 start : tile_grid(volume, tile, overlap)) {
    std::vector<float> values;
    for (int64_t z = 0; z < tile.z; ++z) {
      for (int64_t y = 0; y < tile.y; ++y) {
        for (int64_t x = 0; x < tile.x; ++x) {
          for (int64_t c = 0; c < channels; ++c) {
            values.push_back(value(number, Size3{start.x + x, start.y + y, start.z + z}, c));
          }
        }
      }
    }
    blender.add(start, values);
    ++number;
  }
  blender.finish();
  return result;
}

// Different in every tile.
float noise(size_t number, Size3 p, int64_t c) {
  const Philox4 words = philox(number, static_cast<uint64_t>(p.x + 1000 * p.y + 1000000 * p.z + 10000),
                               static_cast<uint64_t>(c));
  return uniform_from_bits(words.x) - 0.5f;
}

TEST(SlabBlender, EqualsAPlainWeightedMean) {
  const Size3 tile{6, 5, 4};
  for (const Size3 volume :
       {Size3{6, 5, 4}, Size3{7, 6, 5}, Size3{5, 4, 3}, Size3{13, 11, 17}, Size3{6, 3, 9}, Size3{1, 1, 1}}) {
    for (const double overlap : {0.0, 0.5, 0.75}) {
      const auto blended = blend(volume, tile, overlap, 2, noise);
      const auto weights = gaussian_weights(tile);
      std::vector<double> sums(blended.values.size(), 0.0), totals(blended.values.size(), 0.0);
      size_t number = 0;
      for (const Size3 start : tile_grid(volume, tile, overlap)) {
        for (int64_t z = 0; z < tile.z; ++z) {
          for (int64_t y = 0; y < tile.y; ++y) {
            for (int64_t x = 0; x < tile.x; ++x) {
              const Size3 p{start.x + x, start.y + y, start.z + z};
              if (p.x < 0 || p.y < 0 || p.z < 0 || p.x >= volume.x || p.y >= volume.y || p.z >= volume.z) {
                continue;
              }
              for (int64_t c = 0; c < 2; ++c) {
                const size_t at = static_cast<size_t>(((p.z * volume.y + p.y) * volume.x + p.x) * 2 + c);
                const double w = double(weights[static_cast<size_t>((z * tile.y + y) * tile.x + x)]);
                sums[at] += w * double(noise(number, p, c));
                totals[at] += w;
              }
            }
          }
        }
        ++number;
      }
      double worst = 0;
      for (size_t i = 0; i < sums.size(); ++i) {
        worst = std::max(worst, std::abs(sums[i] / totals[i] - double(blended.values[i])));
      }
      // At most 4^3 tiles meet in a voxel; values below 0.5: 64 * 2^-24.
      EXPECT_LT(worst, 4e-6) << to_string(volume) << " overlap " << overlap;
      EXPECT_TRUE(std::isfinite(worst));
      // Slabs follow each other without gaps.
      int64_t next = 0;
      for (const auto& [begin, end] : blended.slabs) {
        EXPECT_EQ(begin, next);
        EXPECT_GT(end, begin);
        next = end;
      }
      EXPECT_EQ(next, volume.z);
    }
  }
}

TEST(SlabBlender, SlabsComeAsEarlyAsPossible) {
  const auto blended = blend({8, 8, 40}, {8, 8, 8}, 0.5, 1, noise);
  EXPECT_EQ(blended.slabs.size(), 9u) << "one for each row of tiles";
  EXPECT_EQ(blended.slabs[0], (std::pair<int64_t, int64_t>{0, 4}));
  EXPECT_EQ(SlabBlender::bytes({8, 8, 40}, {8, 8, 8}, 1), SlabBlender::bytes({8, 8, 4000}, {8, 8, 8}, 1));
}

TEST(SlabBlender, ThreadsDoNotMatter) {
  const Threads one(1);
  const auto a = blend({13, 11, 17}, {6, 5, 4}, 0.5, 3, noise);
  const Threads three(3);
  EXPECT_EQ(blend({13, 11, 17}, {6, 5, 4}, 0.5, 3, noise).values, a.values);
}

TEST(SlabBlender, RefusesWrongOrdersAndHoles) {
  const auto nothing = [](int64_t, int64_t, std::span<const float>) {};
  const std::vector<float> tile(8, 1.0f);
  {
    SlabBlender blender({2, 2, 6}, {2, 2, 2}, 1, nothing);
    blender.add({0, 0, 0}, tile);
    blender.add({0, 0, 2}, tile);
    expect_error<ShapeError>([&] { blender.add({0, 0, 0}, tile); }, {"order of z"});
    expect_error<ShapeError>([&] { blender.add({0, 0, 4}, std::span(tile).first(3)); }, {"3 values"});
    expect_error<ShapeError>([&] { blender.finish(); }, {"covered by no tile"});
  }
  SlabBlender blender({4, 2, 2}, {2, 2, 2}, 1, nothing);
  blender.add({0, 0, 0}, tile);
  expect_error<ShapeError>([&] { blender.finish(); }, {"slice 0", "covered by no tile"});
}

}  // namespace
}  // namespace vesal::imaging
