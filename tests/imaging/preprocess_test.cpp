// Cropping, z-scores, tiles, and the way back to the input's grid.
#include "imaging/preprocess.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

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
