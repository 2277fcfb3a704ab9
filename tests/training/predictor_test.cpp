// Sliding-window inference of whole cases: tiles, skipping, padding, missing modalities, stopping, the memory
// plan, and the files that come out.
#include "training/predictor.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "imaging/nifti.hpp"
#include "training/prediction_files.hpp"
#include "training_fixture.hpp"

namespace vesal::training {
namespace {

namespace fs = std::filesystem;
using imaging::Size3;

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class PredictorTest : public TrainingTest {
 protected:
  static PredictSettings tiles(Size3 patch, double overlap = 0.5) {
    PredictSettings settings;
    settings.patch = patch;
    settings.overlap = overlap;
    return settings;
  }

  DeviceContext context_{Device{}};
  models::Fusion network_{context_, models::fusion_preset("fusion-micro"), 7};
};

// A volume that one tile covers: the blended result is the network's own output, sigmoid applied.
TEST_F(PredictorTest, OneTileIsTheNetworksOutput) {
  const imaging::PreparedCase prepared = this->prepared(1, 32)[0];
  const Size3 patch{32, 32, 32};
  const RegionProbabilities result = predict_case(context_, network_, prepared, tiles(patch));
  EXPECT_EQ(result.tiles, 1);
  EXPECT_EQ(result.tiles_skipped, 0);
  EXPECT_EQ(result.size, prepared.size());

  const std::vector<int64_t> starts[3] = {imaging::tile_starts(prepared.size().x, 32, 0.5),
                                          imaging::tile_starts(prepared.size().y, 32, 0.5),
                                          imaging::tile_starts(prepared.size().z, 32, 0.5)};
  const Size3 start{starts[0][0], starts[1][0], starts[2][0]};
  std::vector<float> input(32 * 32 * 32 * 4);
  imaging::extract_tile(prepared, start, patch, input);
  const Tensor volume = Tensor::from_host(context_, input, {1, 32, 32, 32, 4});
  const models::ModalityMask all{1, 1, 1, 1};
  const std::vector<float> logits = network_.forward(context_, volume, std::span(&all, 1), {})
                                        .segmentation.value()
                                        .to_host<float>(context_);
  for (int64_t z = 0; z < result.size.z; ++z) {
    for (int64_t y = 0; y < result.size.y; ++y) {
      for (int64_t x = 0; x < result.size.x; ++x) {
        for (int64_t region = 0; region < 3; ++region) {
          const int64_t in_tile = (((z - start.z) * 32 + y - start.y) * 32 + x - start.x) * 3 + region;
          const float want = 1.0f / (1.0f + std::exp(-logits[static_cast<size_t>(in_tile)]));
          const float got =
              result.values[static_cast<size_t>(((z * result.size.y + y) * result.size.x + x) * 3 + region)];
          // Weighted by w and divided by w again: two roundings. Nothing is found outside the head.
          const bool inside = prepared.mask.at(x, y, z) != 0;
          ASSERT_NEAR(got, inside ? want : 0.0f, inside ? 3e-7f : 0.0f) << x << ' ' << y << ' ' << z;
        }
      }
    }
  }
}

TEST_F(PredictorTest, ManyTilesGiveProbabilitiesTwiceTheSame) {
  const imaging::PreparedCase prepared = this->prepared(1, 48)[0];
  int64_t calls = 0;
  PredictSettings settings = tiles({16, 32, 16}, 0.3);
  settings.progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(done, ++calls);
    EXPECT_GE(total, done);
  };
  const RegionProbabilities first = predict_case(context_, network_, prepared, settings);
  EXPECT_EQ(calls, first.tiles);
  EXPECT_EQ(first.tiles,
            static_cast<int64_t>(imaging::tile_grid(prepared.size(), settings.patch, 0.3).size()));
  for (const float value : first.values) {
    ASSERT_TRUE(value >= 0.0f && value <= 1.0f) << value;
  }
  calls = 0;
  EXPECT_TRUE(same_bits(first.values, predict_case(context_, network_, prepared, settings).values));
}

// Mirroring along x and z gives the mean over the four mirror images of the case, each mirrored back.
TEST_F(PredictorTest, MirrorImagesAreAveraged) {
  // The case fills its tile exactly, so that a mirror image lies in it just as the case does.
  const Size3 size{32, 32, 32};
  const imaging::PreparedCase phantom = this->prepared(1, 32)[0];
  std::vector<float> voxels(static_cast<size_t>(size.voxels()) * 4);
  imaging::extract_tile(phantom, {0, 0, 0}, size, voxels);
  imaging::PreparedCase prepared;
  prepared.present = imaging::kAllModalities;
  prepared.geometry = prepared.original = prepared.cropped = imaging::make_geometry(size, {1, 1, 1});
  prepared.mask = imaging::LabelMap(prepared.geometry, uint8_t{1});
  for (size_t m = 0; m < 4; ++m) {
    prepared.images[m] = imaging::Image(prepared.geometry);
    for (size_t i = 0; i < prepared.images[m].data.size(); ++i) {
      prepared.images[m].data[i] = voxels[4 * i + m];
    }
  }
  const std::array<bool, 3> axes{true, false, true};
  const auto mirrored = [&](int64_t index, bool x, bool y, bool z) {
    const int64_t i = index % size.x, j = index / size.x % size.y, k = index / (size.x * size.y);
    return static_cast<size_t>(((z ? size.z - 1 - k : k) * size.y + (y ? size.y - 1 - j : j)) * size.x +
                               (x ? size.x - 1 - i : i));
  };
  std::vector<double> expected(static_cast<size_t>(size.voxels() * 3), 0.0);
  for (const bool x : {false, true}) {
    for (const bool z : {false, true}) {
      imaging::PreparedCase turned = prepared;
      for (int64_t i = 0; i < size.voxels(); ++i) {
        const size_t from = mirrored(i, x, false, z);
        turned.mask.data[static_cast<size_t>(i)] = prepared.mask.data[from];
        for (size_t m = 0; m < turned.images.size(); ++m) {
          turned.images[m].data[static_cast<size_t>(i)] = prepared.images[m].data[from];
        }
      }
      const RegionProbabilities one = predict_case(context_, network_, turned, tiles({32, 32, 32}));
      for (int64_t i = 0; i < size.voxels(); ++i) {
        for (size_t region = 0; region < 3; ++region) {
          expected[static_cast<size_t>(i) * 3 + region] +=
              static_cast<double>(one.values[mirrored(i, x, false, z) * 3 + region]) / 4;
        }
      }
    }
  }
  PredictSettings settings = tiles({32, 32, 32});
  const RegionProbabilities plain = predict_case(context_, network_, prepared, settings);
  settings.mirror = axes;
  const RegionProbabilities result = predict_case(context_, network_, prepared, settings);
  double largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    // A mean of four in another order, weighted and divided again: a few roundings of numbers up to 1. Where
    // the volume sits in its tile differs by a voxel when the padding is odd, so sizes here fill the tile's
    // parity.
    ASSERT_NEAR(result.values[i], expected[i], 1e-6) << i;
    largest = std::max(largest, std::abs(expected[i] - static_cast<double>(plain.values[i])));
  }
  EXPECT_GT(largest, 1e-4) << "the network is not symmetric, so that the test can fail";
}

// A head in one corner of a large grid: the other corner's tiles hold none of it.
TEST_F(PredictorTest, TilesWithoutHeadAreSkipped) {
  imaging::PreparedCase prepared = this->prepared(1, 48)[0];
  for (int64_t z = 0; z < prepared.size().z; ++z) {
    for (int64_t y = 0; y < prepared.size().y; ++y) {
      for (int64_t x = 0; x < prepared.size().x; ++x) {
        if (x >= 16 || y >= 16 || z >= 16) {
          prepared.mask.at(x, y, z) = 0;
        }
      }
    }
  }
  prepared.mask.at(15, 15, 15) = 1;
  const RegionProbabilities result = predict_case(context_, network_, prepared, tiles({16, 16, 16}, 0.0));
  int64_t holding = 0;
  for (const Size3 start : imaging::tile_grid(prepared.size(), {16, 16, 16}, 0.0)) {
    holding += start.x <= 15 && start.y <= 15 && start.z <= 15;
  }
  EXPECT_EQ(result.tiles_skipped, result.tiles - holding);
  EXPECT_GT(result.tiles_skipped, 0);
  const Size3 size = result.size;
  const size_t far_corner =
      static_cast<size_t>((((size.z - 1) * size.y + size.y - 1) * size.x + size.x - 1) * 3);
  EXPECT_EQ(result.values[far_corner], 0.0f);
  const size_t inside = static_cast<size_t>(prepared.mask.index(15, 15, 15)) * 3;
  EXPECT_GT(result.values[inside], 0.0f);
}

TEST_F(PredictorTest, AbsentModalitiesLeaveNoTrace) {
  imaging::PreparedCase prepared = this->prepared(1, 32)[0];
  const models::ModalityMask two{1, 0, 1, 0};
  const RegionProbabilities clean = predict_case(context_, network_, prepared, two, tiles({32, 32, 32}));
  for (const size_t absent : {1, 3}) {
    std::fill(prepared.images[absent].data.begin(), prepared.images[absent].data.end(),
              std::numeric_limits<float>::quiet_NaN());
  }
  EXPECT_TRUE(
      same_bits(clean.values, predict_case(context_, network_, prepared, two, tiles({32, 32, 32})).values));
  // And what is shown matters.
  const RegionProbabilities one =
      predict_case(context_, network_, prepared, {1, 0, 0, 0}, tiles({32, 32, 32}));
  EXPECT_FALSE(same_bits(clean.values, one.values));
}

TEST_F(PredictorTest, RefusesWhatMakesNoSense) {
  imaging::PreparedCase prepared = this->prepared(1, 32)[0];
  EXPECT_TRUE(holds(message_of<ShapeError>([&] {
                      predict_case(context_, network_, prepared, tiles({32, 24, 32}));
                    }),
                    "32 x 24 x 32"));
  message_of<ShapeError>([&] { predict_case(context_, network_, prepared, tiles({0, 16, 16})); });
  message_of<UsageError>([&] {
    predict_case(context_, network_, prepared, {0, 0, 0, 0}, tiles({16, 16, 16}));
  });
  prepared.present[2] = false;
  EXPECT_TRUE(holds(message_of<UsageError>([&] {
                      predict_case(context_, network_, prepared, {1, 1, 1, 1}, tiles({16, 16, 16}));
                    }),
                    "t2w"));
}

TEST_F(PredictorTest, StopsBetweenTiles) {
  const imaging::PreparedCase prepared = this->prepared(1, 48)[0];
  std::atomic<bool> stop{false};
  PredictSettings settings = tiles({16, 16, 16});
  settings.stop = &stop;
  int64_t seen = 0;
  settings.progress = [&](int64_t done, int64_t) {
    seen = done;
    stop = done >= 2;
  };
  message_of<InterruptedError>([&] { predict_case(context_, network_, prepared, settings); });
  EXPECT_EQ(seen, 2);
}

TEST_F(PredictorTest, MemoryPlanCountsWhatIsHeld) {
  const MemoryPlan plan = plan_memory({240, 240, 155}, {140, 170, 140}, 4, tiles({96, 96, 96}), 500);
  const int64_t full = 240 * 240 * 155;
  const int64_t small = 140 * 170 * 140;
  EXPECT_EQ(plan.tiles, 2 * 3 * 2);
  EXPECT_EQ(plan.volumes_bytes, (full + small) * 16 + small);
  EXPECT_EQ(plan.probabilities_bytes, small * 12);
  EXPECT_EQ(plan.blending_bytes, imaging::SlabBlender::bytes({140, 170, 140}, {96, 96, 96}, 3));
  EXPECT_EQ(plan.network_bytes, 500);
  const std::string line = plan.line({96, 96, 96}, Device{});
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_TRUE(holds(line, "12 tiles of 96 x 96 x 96")) << line;
  EXPECT_THROW(plan_memory({240, 240, 155}, {140, 170, 140}, 4, tiles({90, 96, 96}), 500), ShapeError);
}

// The estimate from a small tile is what a large one really takes, within a third: windows and graph nodes do
// not scale exactly with voxels.
TEST_F(PredictorTest, NetworkMemoryIsForeseen) {
  const int64_t expected = measure_network_bytes(context_, network_, {48, 48, 64});
  const imaging::PreparedCase prepared = this->prepared(1, 48)[0];
  context_.allocator().reset_peak();
  predict_case(context_, network_, prepared, tiles({48, 48, 64}));
  const double real = static_cast<double>(context_.allocator().statistics().peak_bytes);
  EXPECT_NEAR(static_cast<double>(expected) / real, 1.0, 1.0 / 3.0);
}

TEST_F(PredictorTest, BoxesGoToTheFilesOwnAxes) {
  imaging::NiftiHeader header =
      imaging::make_nifti_header(imaging::make_geometry({10, 20, 30}, {1, 1, 1}), "PIR");
  const imaging::Box3 canonical{{1, 2, 3}, {4, 5, 6}};
  // P: canonical y, flipped: 20 - 2 - 5; I: canonical z, flipped: 30 - 3 - 6; R: canonical x as it is.
  const imaging::Box3 stored = box_in_file(canonical, header);
  EXPECT_EQ(stored.start, (Size3{13, 21, 1}));
  EXPECT_EQ(stored.size, (Size3{5, 6, 4}));
}

TEST_F(PredictorTest, NamesOfOutputs) {
  const PredictionPaths paths = prediction_paths("out/case.7.nii.gz", true);
  EXPECT_EQ(paths.picture, "out/case.7.png");
  EXPECT_EQ(paths.probabilities[2], "out/case.7-et-probability.nii.gz");
  EXPECT_TRUE(prediction_paths("case.nii", false).probabilities[0].empty());
  EXPECT_THROW(prediction_paths("out/case.mha", false), UsageError);
  EXPECT_THROW(prediction_paths("out/.nii.gz", false), UsageError);
}

TEST_F(PredictorTest, StatisticsAgreeWithTheLabels) {
  imaging::Case source = imaging::make_phantom({.seed = 0, .size = {32, 32, 32}, .anatomy = {}}, 0);
  imaging::LabelMap labels(source.geometry);
  for (int64_t x = 4; x < 9; ++x) {
    labels.at(x, 10, 20) = imaging::kLabelEd;
  }
  labels.at(5, 10, 20) = imaging::kLabelEt;
  const auto json = nlohmann::json::parse(region_statistics_json(labels, source));
  EXPECT_EQ(json.at("WT").at("voxels"), 5);
  EXPECT_EQ(json.at("TC").at("voxels"), 1);
  EXPECT_NEAR(json.at("WT").at("volume_mm3").get<double>(), 5 * 216.0, 1e-6);  // 6 mm voxels
  EXPECT_EQ(json.at("WT").at("components"), 1);
  // Stored as LPS: x and y run the other way.
  EXPECT_EQ(json.at("WT").at("bounding_box_voxels").at("start"), (std::vector<int>{32 - 9, 32 - 11, 20}));
  EXPECT_EQ(json.at("WT").at("bounding_box_voxels").at("size"), (std::vector<int>{5, 1, 1}));
  EXPECT_NEAR(json.at("ET").at("intensity").at("t2f").at("mean").get<double>(),
              static_cast<double>(source.images[3].at(5, 10, 20)), 1e-3);
  // An empty region has no place.
  const auto empty =
      nlohmann::json::parse(region_statistics_json(imaging::LabelMap(source.geometry), source));
  EXPECT_EQ(empty.at("ET").at("voxels"), 0);
  EXPECT_TRUE(empty.at("ET").at("bounding_box_voxels").is_null());
}

TEST_F(PredictorTest, FilesComeOutOnTheInputsGridOrNotAtAll) {
  const fs::path data = phantoms(1, 32);
  const imaging::CaseFiles files = imaging::list_cases(data).front();
  const fs::path out = folder_ / "out";
  fs::create_directories(out);
  PredictionOptions options;
  options.tiles = tiles({32, 32, 32});
  options.spacing_mm = {8, 8, 8};  // coarser than the input's 6 mm
  const PredictedCase result =
      predict_files(context_, network_, files, options, prediction_paths(out / "a.nii.gz", true));
  EXPECT_EQ(listing(out), (std::vector<std::string>{"a-et-probability.nii.gz", "a-tc-probability.nii.gz",
                                                    "a-wt-probability.nii.gz", "a.nii.gz", "a.png"}));
  const imaging::NiftiImage labels = imaging::read_nifti(out / "a.nii.gz");
  const imaging::NiftiImage input = imaging::read_nifti(files.images[0]);
  EXPECT_EQ(imaging::geometry_difference(labels.volume.geometry, input.volume.geometry, 0.0), "");
  EXPECT_EQ(labels.header.orientation, input.header.orientation);
  int64_t tumour = 0;
  for (const float value : labels.volume.data) {
    tumour += value > 0.0f;
  }
  EXPECT_EQ(tumour, result.regions[0].voxels);
  EXPECT_NEAR(static_cast<double>(result.regions[0].voxels) * 0.216, result.regions[0].volume_ml, 1e-6);

  // The picture's name is taken by a folder: the case fails and its label map does not stay behind.
  const fs::path blocked = folder_ / "blocked";
  fs::create_directories(blocked / "a.png" / "x");
  EXPECT_THROW(
      predict_files(context_, network_, files, options, prediction_paths(blocked / "a.nii.gz", false)),
      Error);
  EXPECT_EQ(listing(blocked), (std::vector<std::string>{"a.png"}));
}

}  // namespace
}  // namespace vesal::training
