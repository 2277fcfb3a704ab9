// Cropping, z-scores, tiles, and the way back to the input's grid.
#include "imaging/preprocess.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "imaging/metrics.hpp"
#include "imaging/phantom.hpp"
#include "imaging/resample.hpp"
#include "support.hpp"

namespace vesal::imaging {
namespace {

Case small_phantom(uint64_t seed = 1) {
  PhantomOptions options;
  options.seed = seed;
  options.size = {32, 36, 40};
  return make_phantom(options, 0);
}

std::vector<float> region_probabilities(const LabelMap& labels) {
  std::vector<float> values;
  for (const uint8_t label : labels.data) {
    for (const Region region : kRegions) {
      values.push_back(in_region(label, region) ? 1.0f : 0.0f);
    }
  }
  return values;
}

TEST(Prepare, ZScoresInsideTheHeadAndZeroOutside) {
  const Case phantom = small_phantom();
  for (const Vector3 spacing : {Vector3{0, 0, 0}, Vector3{4, 4, 4}, Vector3{9, 0, 0}}) {
    const PreparedCase prepared = prepare_case(phantom, {spacing});
    for (size_t m = 0; m < 4; ++m) {
      double sum = 0, squares = 0, count = 0;
      for (size_t i = 0; i < prepared.mask.data.size(); ++i) {
        const double value = static_cast<double>(prepared.images[m].data[i]);
        if (prepared.mask.data[i] == 0) {
          ASSERT_EQ(value, 0);
          continue;
        }
        sum += value;
        squares += value * value;
        count += 1;
      }
      EXPECT_GT(count, 100);
      EXPECT_NEAR(sum / count, 0, 1e-5);  // float rounding of values about 1
      EXPECT_NEAR(squares / count, 1, 1e-4);
    }
  }
}

TEST(Intensity, IsReadAndWrittenAsText) {
  using Kind = IntensityScaling::Kind;
  EXPECT_EQ(parse_intensity_scaling("zscore"), IntensityScaling{});
  EXPECT_EQ(parse_intensity_scaling("minmax"), (IntensityScaling{.kind = Kind::minmax}));
  const IntensityScaling scaling = parse_intensity_scaling("quantiles 0.02 0.98");
  EXPECT_EQ(scaling, (IntensityScaling{.kind = Kind::quantiles, .low = 0.02, .high = 0.98}));
  for (const char* text : {"zscore", "minmax", "quantiles 0.02 0.98", "quantiles 0 1"}) {
    EXPECT_EQ(to_string(parse_intensity_scaling(text)), text);
  }
  for (const char* text :
       {"", "z-score", "quantiles", "quantiles ", "quantiles 0.02", "quantiles 0.02 ", "quantiles 0.02  0.98",
        "quantiles 0.98 0.02", "quantiles 0.5 0.5", "quantiles -0.1 1", "quantiles 0 1.5", "quantiles nan 1",
        "quantiles 0 1 2", "minmax "}) {
    expect_error<UsageError>([&] { parse_intensity_scaling(text); }, {"intensity: found", "minmax"});
  }
}

TEST(Intensity, QuantilesLieBetweenOrderStatistics) {
  const std::vector<float> values{5, 1, 4, 2, 10};
  EXPECT_EQ(quantiles(values, 0, 1), std::pair(1.0, 10.0));
  EXPECT_EQ(quantiles(values, 0.25, 0.75), std::pair(2.0, 5.0));
  // numpy.quantile([5, 1, 4, 2, 10], [0.1, 0.9]) = 1.4, 8.0
  EXPECT_NEAR(quantiles(values, 0.1, 0.9).first, 1.4, 1e-12);
  EXPECT_NEAR(quantiles(values, 0.1, 0.9).second, 8.0, 1e-12);
  EXPECT_EQ(quantiles(std::vector<float>{3}, 0.1, 0.9), std::pair(3.0, 3.0));
  EXPECT_THROW(quantiles({}, 0.1, 0.9), ShapeError);
  const Image image = random_image(make_geometry({9, 8, 7}, {1, 1, 1}), 2);
  std::vector<float> sorted = image.data;
  std::sort(sorted.begin(), sorted.end());
  const double place = 0.02 * 503;
  const auto below = static_cast<size_t>(place);
  EXPECT_NEAR(quantiles(image.data, 0.02, 0.98).first,
              static_cast<double>(sorted[below]) + (place - static_cast<double>(below)) *
                                                       static_cast<double>(sorted[below + 1] - sorted[below]),
              1e-9);
}

TEST(Prepare, ScalesTheWholeVolume) {
  Case source;
  source.name = "c";
  source.geometry = make_geometry({4, 5, 5}, {1, 1, 1});
  source.present = {true, true, false, false};
  source.images[0] = Image(source.geometry);
  source.images[1] = Image(source.geometry, 7.0f);
  for (size_t i = 0; i < 100; ++i) {
    source.images[0].data[i] = static_cast<float>(i) - 20;
  }
  const PreparedCase whole =
      prepare_case(source, {.intensity = parse_intensity_scaling("minmax"), .crop_to_head = false});
  EXPECT_EQ(whole.box, (Box3{{0, 0, 0}, {4, 5, 5}}));
  EXPECT_EQ(whole.mask.data, std::vector<uint8_t>(100, 1));
  const PreparedCase clipped = prepare_case(
      source, {.intensity = parse_intensity_scaling("quantiles 0.1 0.9"), .crop_to_head = false});
  for (size_t i = 0; i < 100; ++i) {
    EXPECT_NEAR(whole.images[0].data[i], static_cast<double>(i) / 99, 1e-6);
    // The quantiles are those of 0 .. 99: 9.9 and 89.1.
    EXPECT_NEAR(clipped.images[0].data[i], std::clamp((static_cast<double>(i) - 9.9) / 79.2, 0.0, 1.0), 1e-6);
  }
  EXPECT_EQ(whole.images[1].data, std::vector<float>(100, 0.0f)) << "a constant becomes 0";
  EXPECT_EQ(clipped.images[1].data, std::vector<float>(100, 0.0f));
  EXPECT_TRUE(whole.images[2].empty());
}

TEST(ExtractTile, ChoosesModalities) {
  const PreparedCase prepared = prepare_case(small_phantom());
  const Size3 tile{8, 8, 8};
  std::vector<float> all(4 * 512), some(2 * 512);
  extract_tile(prepared, {3, 4, 5}, tile, all);
  extract_tile(prepared, {3, 4, 5}, tile, std::array{Modality::t2f, Modality::t1n}, some);
  for (size_t i = 0; i < 512; ++i) {
    ASSERT_EQ(some[2 * i], all[4 * i + 3]);
    ASSERT_EQ(some[2 * i + 1], all[4 * i]);
  }
  expect_error<ShapeError>([&] { extract_tile(prepared, {}, tile, std::array{Modality::t1n}, some); },
                           {"1024 floats", "1 modalities"});
}

TEST(Prepare, BoxIsTheUnionOfThePresentModalities) {
  Case source;
  source.name = "c";
  source.geometry = make_geometry({10, 11, 12}, {1, 1, 1});
  source.present = {true, false, false, true};
  source.images[0] = Image(source.geometry);
  source.images[3] = Image(source.geometry);
  source.images[0].at(2, 3, 4) = 5;
  source.images[3].at(6, 5, 4) = -5;
  source.images[3].at(6, 5, 9) = 7;
  const PreparedCase prepared = prepare_case(source);
  EXPECT_EQ(prepared.box, (Box3{{2, 3, 4}, {5, 3, 6}}));
  EXPECT_EQ(std::count(prepared.mask.data.begin(), prepared.mask.data.end(), 1), 3);
  EXPECT_TRUE(prepared.images[1].empty());
  EXPECT_TRUE(prepared.labels.empty());
  // A modality that is marked absent has no say, whatever it holds.
  source.present = {true, false, false, false};
  source.images[3].data.assign(source.images[3].data.size(), std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(prepare_case(source).box, (Box3{{2, 3, 4}, {1, 1, 1}}));
  source.present = {};
  expect_error<UsageError>([&] { prepare_case(source); }, {"c", "no modality"});
  source.present = {true, false, false, false};
  source.images[0] = Image(source.geometry);
  expect_error<FormatError>([&] { prepare_case(source); }, {"all voxels"});
}

TEST(Prepare, ConstantModalityBecomesZero) {
  Case source = small_phantom();
  for (float& value : source.images[2].data) {
    value = value != 0 ? 500.0f : 0.0f;
  }
  const PreparedCase prepared = prepare_case(source);
  EXPECT_TRUE(std::all_of(prepared.images[2].data.begin(), prepared.images[2].data.end(),
                          [](float v) { return v == 0; }));
}

TEST(Prepare, ThreadsDoNotMatter) {
  const Case phantom = small_phantom();
  const Threads one(1);
  const PreparedCase a = prepare_case(phantom, {{5, 7, 3}});
  const Threads three(3);
  const PreparedCase b = prepare_case(phantom, {{5, 7, 3}});
  for (size_t m = 0; m < 4; ++m) {
    EXPECT_EQ(a.images[m].data, b.images[m].data);
  }
  EXPECT_EQ(a.labels.data, b.labels.data);
}

TEST(Tile, CopiesInsideAndPadsOutside) {
  Case source = small_phantom();
  source.present[1] = false;
  const PreparedCase prepared = prepare_case(source);
  const Size3 n = prepared.size();
  const Size3 tile{8, 7, 6};
  for (const Size3 start : {Size3{0, 0, 0}, Size3{5, 4, 3}, Size3{-3, -2, -1},
                            Size3{n.x - 4, n.y - 3, n.z - 5}, Size3{-20, 0, 0}}) {
    std::vector<float> out(static_cast<size_t>(tile.voxels() * 4), std::numeric_limits<float>::quiet_NaN());
    extract_tile(prepared, start, tile, out);
    for (int64_t z = 0; z < tile.z; ++z) {
      for (int64_t y = 0; y < tile.y; ++y) {
        for (int64_t x = 0; x < tile.x; ++x) {
          const Size3 p{start.x + x, start.y + y, start.z + z};
          const bool inside = p.x >= 0 && p.y >= 0 && p.z >= 0 && p.x < n.x && p.y < n.y && p.z < n.z;
          for (size_t m = 0; m < 4; ++m) {
            const float expected = inside && m != 1 ? prepared.images[m].at(p.x, p.y, p.z) : 0.0f;
            ASSERT_EQ(out[static_cast<size_t>(((z * tile.y + y) * tile.x + x) * 4) + m], expected);
          }
        }
      }
    }
  }
  std::vector<float> wrong(5);
  expect_error<ShapeError>([&] { extract_tile(prepared, {}, tile, wrong); }, {"5 floats"});
}

TEST(Restore, SameSpacingIsExact) {
  const Case phantom = small_phantom();
  const PreparedCase prepared = prepare_case(phantom);
  EXPECT_EQ(restore_labels(prepared, prepared.labels).data, phantom.labels.data);
  EXPECT_EQ(restore_region_labels(prepared, region_probabilities(prepared.labels)).data, phantom.labels.data);
  std::vector<float> one_hot;
  for (const uint8_t label : prepared.labels.data) {
    for (uint8_t c = 0; c < 4; ++c) {
      one_hot.push_back(label == c ? 3.0f : -3.0f);
    }
  }
  EXPECT_EQ(restore_class_labels(prepared, one_hot, 4).data, phantom.labels.data);
}

TEST(Restore, OtherSpacingKeepsTheShape) {
  PhantomOptions options;
  options.size = {48, 48, 48};
  const Case phantom = make_phantom(options, 0);
  const PreparedCase prepared = prepare_case(phantom, {{3, 5, 3}});
  const LabelMap back = restore_region_labels(prepared, region_probabilities(prepared.labels));
  EXPECT_EQ(back.size(), phantom.geometry.size);
  EXPECT_EQ(geometry_difference(back.geometry, phantom.geometry, 0), "");
  EXPECT_GT(compare_regions(back, phantom.labels)[0].dice, 0.9);
  EXPECT_GT(compare_masks(restore_labels(prepared, prepared.labels), phantom.labels).dice, 0.9);
}

TEST(Restore, SlabsAreSeamless) {
  // Against resampling the whole volume at once; 40 slices make several slabs and a shorter last one.
  const Case phantom = small_phantom();
  const PreparedCase prepared = prepare_case(phantom, {{8, 8, 8}});
  RandomStream random(7, 0, 0);
  std::vector<float> values(static_cast<size_t>(prepared.size().voxels() * 3));
  std::array<Image, 3> channels;
  channels.fill(Image(prepared.geometry));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = random.uniform();
    channels[i % 3].data[i / 3] = values[i];
  }
  const LabelMap labels = restore_region_labels(prepared, values);
  LabelMap expected(phantom.geometry);
  LabelMap part(prepared.cropped);
  std::array<Image, 3> fine;
  for (size_t c = 0; c < 3; ++c) {
    fine[c] = resample_to_grid(channels[c], prepared.cropped);
    Image whole(phantom.geometry);
    paste(fine[c], prepared.box, whole);
    EXPECT_EQ(restore_probability(prepared, values, 3, static_cast<int64_t>(c)).data, whole.data);
  }
  regions_to_labels(fine[0].data, fine[1].data, fine[2].data, part.data);
  paste(part, prepared.box, expected);
  EXPECT_EQ(labels.data, expected.data);
  expect_error<ShapeError>([&] { restore_region_labels(prepared, std::span(values).first(7)); },
                           {"restore", "7 values"});
  expect_error<ShapeError>([&] { restore_probability(prepared, values, 3, 3); }, {"channel 3 of 3"});
  expect_error<ShapeError>([&] { restore_class_labels(prepared, values, 300); }, {"300 classes"});
  expect_error<ShapeError>([&] { restore_labels(prepared, phantom.labels); }, {"restore_labels"});
}

TEST(PrepareRealData, BratsThereAndBack) {
  const auto folder = data_folder() / "brats2021/BraTS2021_01478";
  NEED_FILE(folder);
  LoadOptions options;
  options.scheme = LabelScheme::brats2021;
  options.use = parse_modality_mask("t1c,t2f");
  const Case loaded = load_case(find_case(folder), options);
  const PreparedCase prepared = prepare_case(loaded, {{2, 2, 2}});
  EXPECT_LT(prepared.size().voxels(), 100 * 100 * 90);
  EXPECT_LE(std::abs(prepared.geometry.spacing_mm.x - 2), 0.02);
  const auto metrics =
      compare_regions(restore_region_labels(prepared, region_probabilities(prepared.labels)), loaded.labels);
  // What 2 mm costs a perfect prediction.
  EXPECT_GT(metrics[0].dice, 0.93);
  EXPECT_GT(metrics[1].dice, 0.90);
}

}  // namespace
}  // namespace vesal::imaging
