// Networks of classes from their files alone: what a file has to say, axes and orientation, one pass and
// tiles, the files a user gets, and the trained networks of the real data against the label maps that PyTorch
// made.
#include "training/segmentation.hpp"

#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>

#include "imaging/npz.hpp"
#include "models/fusion.hpp"
#include "models/meshnet.hpp"
#include "tests/training/training_fixture.hpp"
#include "tests/weights_tools/torch_builders.hpp"
#include "training/prediction_files.hpp"
#include "weights_tools/parameters.hpp"

namespace vesal::training {
namespace {

using imaging::Image;
using imaging::LabelMap;

class Segmentation : public TrainingTest {
 protected:
  static weights::Metadata metadata() {
    return {{"vesal.version", "0.1.0"},
            {"vesal.task", "classes"},
            {"vesal.modalities", "t1n"},
            {"vesal.orientation", "stored"},
            {"vesal.axes", "ijk"},
            {"vesal.intensity", "minmax"},
            {"vesal.patch", "whole"},
            {"vesal.spacing_mm", "0 0 0"},
            {"vesal.source_file", "model.pth"},
            {"vesal.labels", R"(["background","white","grey"])"}};
  }

  // Weights of a small network with this metadata.
  std::filesystem::path write_network(const weights::Metadata& changes = {},
                                      const char* name = "net.safetensors") {
    models::MeshNetConfig config = models::meshnet_preset("meshnet-gw");
    config.dilations = {1, 2};
    config.norm = models::MeshNetConfig::Norm::channel;
    const models::MeshNet network(context_, config, 5);
    // Normalised channels have one mean; rows of the head that sum to 0 make of it no class's advantage.
    const std::unique_ptr<layers::Parameter>& head = network.parameters().all()[4];
    std::vector<float> rows = head->value.to_host<float>(context_);
    for (size_t row = 0; row < 3; ++row) {
      float sum = 0;
      for (size_t c = 0; c < 5; ++c) {
        sum += rows[5 * row + c];
      }
      for (size_t c = 0; c < 5; ++c) {
        rows[5 * row + c] -= sum / 5;
      }
    }
    head->value.copy_from_host(context_, rows.data(), rows.size() * sizeof(float));
    weights::Metadata all = network.metadata();
    for (const auto& [key, value] : metadata()) {
      all[key] = value;
    }
    for (const auto& [key, value] : changes) {
      all[key] = value;
      if (value == "ABSENT") {
        all.erase(key);
      }
    }
    weights::write_tensors(context_, folder_ / name, weights::named_parameters(network.parameters()), all);
    return folder_ / name;
  }

  // A T1 of random numbers, stored along `orientation`.
  imaging::CaseFiles write_case(const char* orientation, imaging::Vector3 spacing = {1, 1, 1}) const {
    const imaging::Geometry geometry = imaging::make_geometry({9, 10, 11}, spacing);
    Image image(geometry);
    RandomStream random(8, 0, 0);
    for (float& value : image.data) {
      value = random.uniform(0, 200);
    }
    imaging::CaseFiles files;
    files.name = "case";
    files.images[0] = folder_ / (std::string(orientation) + ".nii.gz");
    imaging::write_like(files.images[0], image, imaging::make_nifti_header(geometry, orientation));
    return files;
  }

  LabelMap segment(const std::filesystem::path& weights, const imaging::CaseFiles& files,
                   const PredictSettings& settings) {
    const LoadedSegmenter loaded = load_segmenter(context_, weights);
    const imaging::Case source = imaging::load_case(files, {.use = loaded.info.mask(), .read_labels = false});
    const PreparedForSegmenter prepared = prepare_for_segmenter(source, loaded.info);
    return segment_case(context_, *loaded.network, loaded.info, source, prepared, settings).labels;
  }
  static PredictSettings tiles(imaging::Size3 patch) {
    PredictSettings settings;
    settings.patch = patch;
    return settings;
  }

  DeviceContext context_{Device{}};
};

TEST_F(Segmentation, AFileSaysAllThereIsToKnow) {
  const LoadedSegmenter loaded = load_segmenter(context_, write_network());
  const SegmenterInfo& info = loaded.info;
  EXPECT_EQ(info.preset, "meshnet-gw");
  EXPECT_EQ(info.labels, (std::vector<std::string>{"background", "white", "grey"}));
  EXPECT_EQ(info.modalities, std::vector{imaging::Modality::t1n});
  EXPECT_EQ(info.layout.orientation, "stored");
  EXPECT_EQ(info.layout.axes, "ijk");
  EXPECT_EQ(imaging::to_string(info.intensity), "minmax");
  EXPECT_FALSE(info.crop_to_head);
  EXPECT_TRUE(info.whole());
  EXPECT_EQ(info.source_file, "model.pth");
  EXPECT_EQ(task_of_weights(loaded.file), NetworkTask::classes);

  const SegmenterInfo other = load_segmenter(context_, write_network({{"vesal.patch", "32 48 64"},
                                                                      {"vesal.spacing_mm", "1 1.5 2"},
                                                                      {"vesal.crop", "head"},
                                                                      {"vesal.labels", "ABSENT"},
                                                                      {"vesal.orientation", "ABSENT"},
                                                                      {"vesal.axes", "ABSENT"}}))
                                  .info;
  EXPECT_EQ(other.patch, (imaging::Size3{32, 48, 64}));
  EXPECT_EQ(other.spacing_mm, (imaging::Vector3{1, 1.5, 2}));
  EXPECT_TRUE(other.crop_to_head);
  EXPECT_EQ(other.labels, (std::vector<std::string>{"background", "class 1", "class 2"}));
  EXPECT_EQ(other.layout.orientation + other.layout.axes, "RASkji");
  EXPECT_TRUE(load_segmenter(context_, write_network({{"vesal.intensity", "ABSENT"}})).info.crop_to_head)
      << "z-scores are those of the head";
}

TEST_F(Segmentation, MetadataIsNotTrusted) {
  const std::string long_name(500, 'x');
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"vesal.labels", "background"},
                                                        {"vesal.labels", "[]"},
                                                        {"vesal.labels", R"(["a","b"])"},
                                                        {"vesal.labels", R"(["a","b","b"])"},
                                                        {"vesal.labels", R"(["a","b",""])"},
                                                        {"vesal.labels", R"(["a","b",3])"},
                                                        {"vesal.labels", R"(["a","b","c\n"])"},
                                                        {"vesal.labels", R"(["a","b",")" + long_name + "\"]"},
                                                        {"vesal.modalities", "t1n,t2f"},
                                                        {"vesal.modalities", "ct"},
                                                        {"vesal.modalities", "ABSENT"},
                                                        {"vesal.orientation", "RAR"},
                                                        {"vesal.axes", "jik"},
                                                        {"vesal.intensity", "quantiles 0.9 0.1"},
                                                        {"vesal.crop", "face"},
                                                        {"vesal.spacing_mm", "1 1"},
                                                        {"vesal.spacing_mm", "-1 1 1"},
                                                        {"vesal.spacing_mm", "1 1 1e9"},
                                                        {"vesal.patch", "all"},
                                                        {"vesal.patch", "0 16 16"},
                                                        {"vesal.patch", "16 16 99999"},
                                                        {"vesal.version", "ABSENT"},
                                                        {"dilations", "0"},
                                                        {"channels", "6"},
                                                        {"model", "unet"}}) {
    const std::filesystem::path file = write_network({{key, value}});
    const std::string message = message_of<FormatError>([&] { load_segmenter(context_, file); });
    EXPECT_TRUE(message.starts_with(file.string())) << key << ": " << message;
    EXPECT_LT(message.size(), file.string().size() + 500) << message;
  }
}

TEST_F(Segmentation, SaysWhatToDoWithOtherWeights) {
  const std::filesystem::path bare = folder_ / "bare.safetensors";
  weights::write_safetensors(bare, {}, {});
  EXPECT_TRUE(holds(message_of<FormatError>([&] { task_of_weights(bare); }), "run vesal convert first"));
  spit(folder_ / "checkpoint.pth",
       weights::zip_of(weights::one(weights::PickleBuilder().vector("0", 3)).stop()));
  const std::string refusal = message_of<FormatError>([&] { task_of_weights(folder_ / "checkpoint.pth"); });
  EXPECT_TRUE(holds(refusal, "checkpoint.pth: found weights in the format PyTorch (zip)")) << refusal;
  EXPECT_TRUE(holds(refusal, "run vesal convert first")) << refusal;
  spit(folder_ / "noise", "these are no weights at all");
  EXPECT_TRUE(holds(message_of<FormatError>([&] { task_of_weights(folder_ / "noise"); }), "noise"));
  EXPECT_THROW(task_of_weights(folder_ / "absent"), IoError);
  const std::filesystem::path flat = write_network({{"model", "fusion-2d"}, {"vesal.task", "regions"}});
  EXPECT_TRUE(holds(message_of<UsageError>([&] { task_of_weights(flat); }), "fusion-2d"));
  // Fusion's weights under the name of another task.
  const models::Fusion fusion(context_, models::fusion_preset("fusion-micro"), 1);
  weights::Metadata all = models::to_metadata(fusion.config());
  const std::filesystem::path file = folder_ / "fusion.safetensors";
  weights::write_tensors(context_, file, weights::named_parameters(fusion.parameters()), all);
  EXPECT_EQ(task_of_weights(file), NetworkTask::regions);
  EXPECT_TRUE(holds(message_of<FormatError>([&] { load_segmenter(context_, file); }), "vesal.task"));
}

// The network sees [i][j][k] of the file, scaled by its range: computed here by hand.
TEST_F(Segmentation, TheNetworkSeesTheArrayOfTheFile) {
  const std::filesystem::path weights = write_network();
  const LoadedSegmenter loaded = load_segmenter(context_, weights);
  for (const char* orientation : {"RAS", "LIA", "SPR"}) {
    const imaging::CaseFiles files = write_case(orientation);
    const imaging::NiftiImage image = imaging::read_nifti(files.images[0]);
    const imaging::Size3 n = image.header.stored_size;
    // Where a voxel of the file lies on the canonical grid.
    const auto canonical = [&](const imaging::Size3& ijk) {
      imaging::Size3 place;
      for (int axis = 0; axis < 3; ++axis) {
        const auto a = static_cast<size_t>(axis);
        place[image.header.axis[a]] = image.header.flipped[a] ? n[axis] - 1 - ijk[axis] : ijk[axis];
      }
      return image.volume.index(place.x, place.y, place.z);
    };
    const auto [low, high] = std::minmax_element(image.volume.data.begin(), image.volume.data.end());
    std::vector<float> array;
    std::vector<int64_t> places;
    for (int64_t i = 0; i < n.x; ++i) {
      for (int64_t j = 0; j < n.y; ++j) {
        for (int64_t k = 0; k < n.z; ++k) {
          places.push_back(canonical({i, j, k}));
          array.push_back((image.volume.data[static_cast<size_t>(places.back())] - *low) / (*high - *low));
        }
      }
    }
    const Variable logits =
        loaded.network->forward(context_, Tensor::from_host(context_, array, {1, n.x, n.y, n.z, 1}), {});
    const std::vector<float> scores = logits.value().to_host<float>(context_);
    const LabelMap labels = segment(weights, files, tiles({}));
    EXPECT_EQ(imaging::geometry_difference(labels.geometry, image.volume.geometry), "");
    std::array<int, 3> seen{};
    for (size_t voxel = 0; voxel < places.size(); ++voxel) {
      const float* first = scores.data() + 3 * voxel;
      const auto best = std::max_element(first, first + 3) - first;
      ++seen[static_cast<size_t>(best)];
      // Scores so near each other that the scaling's last bit decides do not occur here.
      ASSERT_EQ(labels.data[static_cast<size_t>(places[voxel])], best) << orientation << " voxel " << voxel;
    }
    EXPECT_GT(*std::max_element(seen.begin(), seen.end()), 0);
    EXPECT_LT(*std::max_element(seen.begin(), seen.end()), 990) << "one label everywhere shows nothing";
  }
}

TEST_F(Segmentation, TilesAgreeWithTheWholeVolume) {
  const std::filesystem::path weights = write_network();
  const imaging::CaseFiles files = write_case("LIA");  // 9 x 11 x 10 in the file
  const LabelMap whole = segment(weights, files, tiles({}));
  EXPECT_EQ(segment(weights, files, tiles({9, 11, 10})).data, whole.data);
  // A patch counts along i, j, k: smaller ones see less around their borders, and other means.
  const LabelMap small = segment(weights, files, tiles({9, 11, 8}));
  int64_t different = 0;
  for (size_t i = 0; i < whole.data.size(); ++i) {
    different += small.data[i] != whole.data[i] ? 1 : 0;
  }
  EXPECT_GT(different, 0);
  EXPECT_LT(different, 495);

  PredictSettings settings = tiles({});
  settings.mirror = {true, false, false};
  EXPECT_TRUE(holds(message_of<UsageError>([&] { segment(weights, files, settings); }), "mirror"));
  settings.patch = {9, 11, 10};
  EXPECT_NE(segment(weights, files, settings).data, whole.data);
  const std::atomic<bool> stop = true;
  for (const imaging::Size3 patch : {imaging::Size3{}, imaging::Size3{9, 11, 10}}) {
    settings = tiles(patch);
    settings.stop = &stop;
    EXPECT_TRUE(
        holds(message_of<InterruptedError>([&] { segment(weights, files, settings); }), "interrupted"));
  }
}

TEST_F(Segmentation, AnotherSpacingComesBackToTheInputsGrid) {
  const std::filesystem::path weights = write_network({{"vesal.spacing_mm", "2 0 1"}});
  const imaging::CaseFiles files = write_case("LIA");
  const LoadedSegmenter loaded = load_segmenter(context_, weights);
  const imaging::Case source = imaging::load_case(files, {.use = loaded.info.mask(), .read_labels = false});
  const PreparedForSegmenter prepared = prepare_for_segmenter(source, loaded.info);
  // Spacing counts along i, j, k as well; D, H, W of the volume are i, j, k.
  EXPECT_EQ(prepared.volume.size(), (imaging::Size3{10, 11, 5}));
  EXPECT_NEAR(prepared.volume.geometry.spacing_mm.z, 1.8, 1e-12) << "9 mm in 5 voxels";
  EXPECT_EQ(prepared.volume.geometry.spacing_mm.x, 1.0);
  for (const imaging::Size3 patch : {imaging::Size3{}, imaging::Size3{8, 8, 8}}) {
    EXPECT_EQ(segment(weights, files, tiles(patch)).size(), source.geometry.size);
  }
}

TEST_F(Segmentation, StatisticsAreThoseOfEachLabel) {
  imaging::Case source;
  source.geometry = imaging::make_geometry({6, 5, 4}, {1, 2, 3});
  source.header = imaging::make_nifti_header(source.geometry, "LPS");
  source.present[0] = true;
  source.images[0] = Image(source.geometry);
  LabelMap labels(source.geometry);
  for (size_t i = 0; i < labels.data.size(); ++i) {
    source.images[0].data[i] = static_cast<float>(i);
  }
  labels.at(1, 2, 3) = 2;
  labels.at(4, 2, 3) = 2;
  labels.at(0, 0, 0) = 1;
  const auto json =
      nlohmann::json::parse(class_statistics_json(labels, {"background", "a", "b", "none"}, source));
  EXPECT_EQ(json.size(), 3u);
  EXPECT_EQ(json["b"]["voxels"], 2);
  EXPECT_EQ(json["b"]["components"], 2);
  EXPECT_NEAR(json["b"]["volume_mL"].get<double>(), 0.012, 1e-9);
  // x and y run against the file's axes: 6 - 1 - 4 and 5 - 2 - 1.
  EXPECT_EQ(json["b"]["bounding_box_voxels"],
            nlohmann::json::parse(R"({"start": [1, 2, 3], "size": [4, 1, 1]})"));
  EXPECT_NEAR(json["b"]["intensity"]["t1n"]["mean"].get<double>(), 104.5, 1e-9);
  EXPECT_NEAR(json["b"]["intensity"]["t1n"]["std"].get<double>(), 1.5, 1e-9);
  EXPECT_EQ(json["a"]["voxels"], 1);
  EXPECT_EQ(json["none"]["voxels"], 0);
  EXPECT_TRUE(json["none"]["bounding_box_voxels"].is_null());
}

TEST_F(Segmentation, OneCaseFromFilesToFiles) {
  const LoadedSegmenter loaded = load_segmenter(context_, write_network());
  const imaging::CaseFiles files = write_case("LIA");
  std::vector<int64_t> calls;
  PredictSettings settings = tiles({});
  settings.progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 3);
    calls.push_back(done);
  };
  const PredictionPaths paths = prediction_paths(folder_ / "out.nii.gz", false);
  const PredictedCase result = predict_files(context_, loaded, files, settings, paths);
  EXPECT_EQ(calls, (std::vector<int64_t>{1, 2, 3}));
  EXPECT_TRUE(std::filesystem::exists(paths.picture));
  const imaging::NiftiImage written = imaging::read_nifti(paths.label_map);
  EXPECT_EQ(written.header.orientation, "LIA");
  std::map<float, int64_t> counts;
  for (const float label : written.volume.data) {
    ++counts[label];
  }
  ASSERT_EQ(result.volumes_ml.size(), 2u);
  EXPECT_EQ(result.volumes_ml[0].first, "white");
  EXPECT_NEAR(result.volumes_ml[0].second, static_cast<double>(counts[1]) / 1000, 1e-9);
  EXPECT_NEAR(result.volumes_ml[1].second, static_cast<double>(counts[2]) / 1000, 1e-9);
  EXPECT_EQ(nlohmann::json::parse(result.statistics)["grey"]["voxels"], counts[2]);
  EXPECT_EQ(result.prepared_size, (imaging::Size3{9, 11, 10})) << "along i, j, k of the file";

  imaging::CaseFiles other;
  other.name = "other";
  other.images[3] = files.images[0];
  EXPECT_TRUE(
      holds(message_of<UsageError>([&] { predict_files(context_, loaded, other, settings, paths); }), "t1n"));
}

TEST_F(Segmentation, MemoryPlansCountWhatIsHeld) {
  const LoadedSegmenter loaded = load_segmenter(context_, write_network());
  const int64_t bytes = measure_segmenter_bytes(context_, *loaded.network, {64, 64, 64}, DType::f32);
  // Two activations of five channels.
  EXPECT_GT(bytes, 2 * 64 * 64 * 64 * 5 * 4);
  EXPECT_LT(bytes, 3 * 64 * 64 * 64 * 5 * 4);
  const MemoryPlan whole =
      plan_segmenter_memory({64, 64, 64}, {64, 64, 64}, *loaded.network, tiles({}), bytes);
  EXPECT_EQ(whole.tiles, 1);
  EXPECT_EQ(whole.probabilities_bytes, 0);
  const MemoryPlan window =
      plan_segmenter_memory({64, 64, 64}, {32, 64, 64}, *loaded.network, tiles({32, 32, 32}), bytes);
  EXPECT_GT(window.tiles, 1);
  EXPECT_EQ(window.probabilities_bytes, 32 * 64 * 64 * 3 * 4);
}

// ---- the trained networks

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSlowBuild = true;  // minutes each
#else
constexpr bool kSlowBuild = false;
#endif

class TrainedMeshNet : public Segmentation {
 protected:
  void SetUp() override {
    Segmentation::SetUp();
    const char* folder = std::getenv("VESAL_DATA");
    data_ = std::filesystem::path(folder != nullptr ? folder : VESAL_TEST_DATA) / "meshnet";
    if (kSlowBuild) {
      GTEST_SKIP() << "not in this build: it would take many minutes";
    }
    if (!std::filesystem::exists(data_ / "t1_crop.nii.gz")) {
      GTEST_SKIP() << data_.string() << " is absent (set VESAL_DATA to the folder of real data)";
    }
  }

  // The file as it was trained, imported.
  LoadedSegmenter import(const char* preset, const char* file, const weights::Metadata& changes) {
    const std::unique_ptr<weights::WeightsFile> trained = weights::open_weights(data_ / file / "model.pth");
    models::MeshNet network(context_, models::meshnet_preset(preset), std::nullopt);
    weights::load_tensors(context_, *trained, weights::named_parameters(network.parameters()));
    weights::Metadata all = network.metadata();
    for (const auto& [key, value] : metadata()) {
      all[key] = value;
    }
    for (const auto& [key, value] : changes) {
      all[key] = value;
    }
    weights::write_tensors(context_, folder_ / "net.safetensors",
                           weights::named_parameters(network.parameters()), all);
    return load_segmenter(context_, folder_ / "net.safetensors");
  }

  // Labels of the T1, and that at least 99.9 % of them are the reference's.
  std::vector<int64_t> compare(const LoadedSegmenter& loaded, const char* reference) {
    imaging::CaseFiles files;
    files.name = "t1";
    files.images[0] = data_ / "t1_crop.nii.gz";
    const PredictionPaths paths = prediction_paths(folder_ / "labels.nii.gz", false);
    predict_files(context_, loaded, files, {.patch = {}, .stop = nullptr, .progress = {}}, paths);
    const Image found = imaging::read_nifti(paths.label_map).volume;
    const Image expected = imaging::read_nifti(data_ / reference).volume;
    EXPECT_EQ(imaging::geometry_difference(found.geometry, expected.geometry), "");
    std::vector<int64_t> counts(loaded.info.labels.size(), 0);
    int64_t different = 0;
    for (size_t i = 0; i < found.data.size(); ++i) {
      different += found.data[i] != expected.data[i] ? 1 : 0;
      ++counts.at(static_cast<size_t>(found.data[i]));
    }
    EXPECT_LE(different, static_cast<int64_t>(found.data.size() / 1000));
    std::printf("%s: %ld of %zu voxels differ\n", loaded.info.preset.c_str(), different, found.data.size());
    return counts;
  }

  std::filesystem::path data_;
};

TEST_F(TrainedMeshNet, GreyAndWhiteMatterAgreeWithPyTorch) {
  const std::vector<int64_t> counts =
      compare(import("meshnet-gw", "model5_gw_ae", {}), "model5_gw_ae_ijk_t1crop_labels.nii.gz");
  // A thousandth of the smaller class.
  EXPECT_NEAR(static_cast<double>(counts[1]), 518540, 500);
  EXPECT_NEAR(static_cast<double>(counts[2]), 735212, 500);
}

TEST_F(TrainedMeshNet, BrainMaskAgreesWithPyTorch) {
  const std::vector<int64_t> counts = compare(
      import("mindgrab", "mindgrab",
             {{"vesal.intensity", "quantiles 0.02 0.98"}, {"vesal.labels", R"(["background","brain"])"}}),
      "mindgrab_ijk_t1crop_labels.nii.gz");
  EXPECT_NEAR(static_cast<double>(counts[1]) / 1000, 1607, 1);
}

// The reference is of the network that saw this crop, not of a crop of its labels: near the crop's border
// they differ.
TEST_F(TrainedMeshNet, EighteenClassesAgreeWithPyTorchOnACrop) {
  const LoadedSegmenter loaded =
      import("meshnet-18", "model18cls", {{"vesal.labels", R"(["0","1","2","3","4","5",
      "6","7","8","9","10","11","12","13","14","15","16","17"])"}});
  imaging::CaseFiles files;
  files.name = "t1";
  files.images[0] = data_ / "t1_crop.nii.gz";
  imaging::Case source = imaging::load_case(files, {.use = loaded.info.mask(), .read_labels = false});
  PreparedForSegmenter prepared = prepare_for_segmenter(source, loaded.info);
  // [48:208, 40:216, 48:208] of i, j, k, which are z, y, x of the prepared volume. The crop has the same
  // range.
  const imaging::Box3 box{{48, 40, 48}, {160, 176, 160}};
  imaging::PreparedCase& volume = prepared.volume;
  volume.images[0] = imaging::crop(volume.images[0], box);
  volume.mask = imaging::crop(volume.mask, box);
  volume.original = volume.cropped = volume.geometry = volume.mask.geometry;
  volume.box = {{0, 0, 0}, box.size};
  source.geometry.size = {};
  for (size_t axis = 0; axis < 3; ++axis) {
    source.geometry.size[prepared.layout.axis[axis]] = box.size[static_cast<int>(axis)];
  }
  const SegmentedCase result =
      segment_case(context_, *loaded.network, loaded.info, source, prepared, tiles({}));
  const LabelMap labels = imaging::to_layout(result.labels, prepared.layout);
  const std::vector<uint8_t> expected =
      imaging::NpzFile(data_ / "model18cls_ijk_crop48_40_48_size160_176_160_labels.npz")
          .read("labels")
          .to_labels();
  ASSERT_EQ(labels.data.size(), expected.size());
  int64_t different = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    different += labels.data[i] != expected[i] ? 1 : 0;
  }
  std::printf("meshnet-18: %ld of %zu voxels differ\n", different, expected.size());
  EXPECT_LE(different, static_cast<int64_t>(expected.size() / 1000));
}

}  // namespace
}  // namespace vesal::training
