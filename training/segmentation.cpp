// Metadata, preparation, one pass or many tiles, and the way back: see segmentation.hpp.
#include "training/segmentation.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "base/parallel.hpp"
#include "models/catalogue.hpp"
#include "training/checkpoint.hpp"
#include "training/metadata_reader.hpp"
#include "training/window.hpp"
#include "weights_tools/parameters.hpp"

namespace vesal::training {
namespace {

using imaging::LabelMap;
using imaging::Size3;

constexpr size_t kLongestLabel = 200;
constexpr int64_t kLargestPatch = 4096;
constexpr int64_t kSlabSlices = 8;  // slices of scores on the host at a time

// The metadata of a safetensors file; of others, what they are and what to do.
weights::Metadata metadata_of(const std::filesystem::path& path) {
  try {
    return weights::SafetensorsFile(path).metadata();
  } catch (const FormatError&) {
    // Where it is nothing known, this says so better than the safetensors reader.
    const std::string format(weights::open_weights(path)->format());
    throw FormatError(concat(path.string(), ": found weights in the format ", format,
                             ", expected a file of Vesal's: run vesal convert first"));
  }
}

// A list of `classes` distinct names.
std::vector<std::string> read_labels(const MetadataReader& reader, int64_t classes) {
  constexpr const char* kKey = "vesal.labels";
  std::vector<std::string> labels;
  if (!reader.has(kKey)) {
    labels.emplace_back("background");
    for (int64_t i = 1; i < classes; ++i) {
      labels.push_back(concat("class ", i));
    }
    return labels;
  }
  const nlohmann::json json = nlohmann::json::parse(reader.text(kKey), nullptr, false);
  reader.require(json.is_array() && static_cast<int64_t>(json.size()) == classes, kKey);
  for (const auto& name : json) {
    reader.require(name.is_string(), kKey);
    labels.push_back(name.get<std::string>());
    const std::string& label = labels.back();
    reader.require(!label.empty() && label.size() <= kLongestLabel && weights::is_utf8(label) &&
                       std::none_of(label.begin(), label.end(),
                                    [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }),
                   kKey);
  }
  reader.require(std::set(labels.begin(), labels.end()).size() == labels.size(), kKey);
  return labels;
}

// Scores of voxels to their labels, where the mask counts them in.
void pick_labels(std::span<const float> scores, int64_t classes, const uint8_t* mask, uint8_t* labels) {
  parallel_for(static_cast<int64_t>(scores.size()) / classes, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* first = scores.data() + i * classes;
      labels[i] = mask[i] != 0 ? static_cast<uint8_t>(std::max_element(first, first + classes) - first) : 0;
    }
  });
}

// In place, [voxels, classes].
void softmax_rows(std::vector<float>& scores, int64_t classes) {
  parallel_for(static_cast<int64_t>(scores.size()) / classes, 1 << 12, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = scores.data() + i * classes;
      const float largest = *std::max_element(row, row + classes);
      float sum = 0;
      for (int64_t c = 0; c < classes; ++c) {
        row[c] = std::exp(row[c] - largest);
        sum += row[c];
      }
      for (int64_t c = 0; c < classes; ++c) {
        row[c] /= sum;
      }
    }
  });
}

// One pass over the whole volume, handed out slab by slab: logits, or probabilities where they are asked for.
void run_whole(DeviceContext& context, const models::Segmenter& network, const imaging::PreparedCase& volume,
               std::span<const imaging::Modality> modalities, const PredictSettings& settings,
               bool probabilities, const imaging::SlabBlender::Callback& finished) {
  const Size3 n = volume.size();
  const auto stop_if_asked = [&](int64_t done, int64_t total) {
    check<InterruptedError>(settings.stop == nullptr || !settings.stop->load(), volume.name,
                            ": interrupted after ", done, " of ", total, " layers");
  };
  Tensor input = Tensor::empty(context, {1, n.z, n.y, n.x, static_cast<int64_t>(modalities.size())});
  {
    std::vector<float> values(static_cast<size_t>(input.count()));
    imaging::extract_tile(volume, {0, 0, 0}, n, modalities, values);
    input.copy_from_host(context, values.data(), values.size() * sizeof(float));
  }
  const auto progress = [&](int64_t done, int64_t total) {
    stop_if_asked(done, total);
    if (done + 1 == total) {
      // The scores have a size of their own: what is cached would lie idle beside them.
      context.allocator().release_cached();
    }
    if (settings.progress) {
      settings.progress(done, total);
    }
  };
  const Variable logits =
      network.forward(context, input, {.precision = settings.precision, .progress = progress});
  const Tensor slices = logits.value().reshape({n.z, n.y, n.x, network.classes()});
  std::vector<float> slab;
  for (int64_t z = 0; z < n.z; z += kSlabSlices) {
    const Tensor part = slices.slice(z, std::min(z + kSlabSlices, n.z));
    slab.resize(static_cast<size_t>(part.count()));
    part.copy_to_host(context, slab.data(), slab.size() * sizeof(float));
    if (probabilities) {
      softmax_rows(slab, network.classes());
    }
    finished(z, std::min(z + kSlabSlices, n.z), slab);
  }
}

}  // namespace

NetworkTask task_of_weights(const std::filesystem::path& run_or_file) {
  const std::filesystem::path path = find_weights(run_or_file);
  const weights::Metadata metadata = metadata_of(path);
  const auto model = metadata.find("model");
  check<FormatError>(
      model != metadata.end() || metadata.contains("vesal.version"), path.string(),
      ": metadata: found no model, expected the weights of a network of Vesal's: run vesal convert "
      "first");
  // What vesal train wrote says no task.
  if (model == metadata.end() || model->second == "fusion") {
    return NetworkTask::regions;
  }
  const auto task = metadata.find("vesal.task");
  check<UsageError>(task != metadata.end() && task->second == "classes", path.string(), ": found ",
                    weights::one_line(model->second), ", expected a network that segments volumes (",
                    "those of slices cannot be run by vesal predict)");
  return NetworkTask::classes;
}

imaging::ModalityMask SegmenterInfo::mask() const {
  imaging::ModalityMask mask{};
  for (const imaging::Modality modality : modalities) {
    mask[static_cast<size_t>(modality)] = true;
  }
  return mask;
}

SegmenterInfo segmenter_info_from(const weights::Metadata& metadata, const models::Segmenter& network,
                                  const std::string& file) {
  const MetadataReader reader(metadata, file, "weights written by vesal convert");
  SegmenterInfo info;
  info.version = reader.text("vesal.version");
  info.preset = reader.text("preset");
  info.labels = read_labels(reader, network.classes());
  info.layout = {reader.text_or("vesal.orientation", "RAS"), reader.text_or("vesal.axes", "kji")};
  try {
    const imaging::ModalityMask mask = imaging::parse_modality_mask(reader.text("vesal.modalities"));
    for (const imaging::Modality modality : imaging::kModalities) {
      if (mask[static_cast<size_t>(modality)]) {
        info.modalities.push_back(modality);
      }
    }
    imaging::check_rule(info.layout);
    info.intensity = imaging::parse_intensity_scaling(reader.text_or("vesal.intensity", "zscore"));
  } catch (const UsageError& error) {
    throw FormatError(concat(file, ": metadata: ", weights::one_line(error.what())));
  }
  reader.require(static_cast<int64_t>(info.modalities.size()) == network.in_channels(), "vesal.modalities");
  info.crop_to_head = info.intensity.kind == imaging::IntensityScaling::Kind::zscore;
  if (reader.has("vesal.crop")) {
    const std::string& crop = reader.text("vesal.crop");
    reader.require(crop == "head" || crop == "none", "vesal.crop");
    info.crop_to_head = crop == "head";
  }
  if (reader.has("vesal.spacing_mm")) {
    const std::vector<double> spacing = reader.numbers<double>("vesal.spacing_mm", 3);
    info.spacing_mm = {spacing[0], spacing[1], spacing[2]};
    for (const double one : spacing) {
      reader.require(one == 0 || (one >= 0.01 && one <= 100), "vesal.spacing_mm");
    }
  }
  if (reader.text_or("vesal.patch", "whole") != "whole") {
    const std::vector<int64_t> patch = reader.numbers<int64_t>("vesal.patch", 3);
    info.patch = {patch[0], patch[1], patch[2]};
    for (const int64_t extent : patch) {
      reader.require(extent >= 1 && extent <= kLargestPatch, "vesal.patch");
    }
  }
  info.source_file = reader.text_or("vesal.source_file", "");
  info.source_sha256 = reader.text_or("vesal.source_sha256", "");
  return info;
}

LoadedSegmenter load_segmenter(DeviceContext& context, const std::filesystem::path& run_or_file) {
  LoadedSegmenter loaded;
  loaded.file = find_weights(run_or_file);
  const weights::SafetensorsFile file(loaded.file);
  const std::string name = loaded.file.string();
  std::unique_ptr<models::Model> model;
  try {
    model = models::make_model(context, file.metadata(), std::nullopt);
  } catch (const Error& error) {
    throw FormatError(concat(name, ": metadata: ", weights::one_line(error.what())));
  }
  loaded.network.reset(dynamic_cast<models::Segmenter*>(model.get()));
  check<FormatError>(loaded.network != nullptr, name,
                     ": metadata: vesal.task: found classes, which its network, ",
                     weights::one_line(file.metadata().at("model")), ", does not give");
  static_cast<void>(model.release());
  loaded.info = segmenter_info_from(file.metadata(), *loaded.network, name);
  weights::load_tensors(context, file, weights::named_parameters(loaded.network->parameters()));
  loaded.network->parameters().values_changed();
  return loaded;
}

PreparedForSegmenter prepare_for_segmenter(const imaging::Case& source, const SegmenterInfo& info) {
  PreparedForSegmenter prepared;
  prepared.layout = imaging::layout_for(info.layout, source.header);
  imaging::Case turned;
  turned.name = source.name;
  turned.present = source.present;
  for (const imaging::Modality modality : info.modalities) {
    const auto m = static_cast<size_t>(modality);
    check<UsageError>(source.present[m], source.name, ": found no ", imaging::name_of(modality),
                      ", expected it: ", info.preset, " needs every modality that it was trained on");
    turned.images[m] = imaging::to_layout(source.images[m], prepared.layout);
    turned.geometry = turned.images[m].geometry;
  }
  turned.present = info.mask();
  prepared.volume =
      imaging::prepare_case(turned, {.spacing_mm = imaging::from_ijk(info.layout, info.spacing_mm),
                                     .intensity = info.intensity,
                                     .crop_to_head = info.crop_to_head});
  return prepared;
}

SegmentedCase segment_case(DeviceContext& context, const models::Segmenter& network,
                           const SegmenterInfo& info, const imaging::Case& source,
                           const PreparedForSegmenter& prepared, const PredictSettings& settings) {
  const imaging::PreparedCase& volume = prepared.volume;
  const int64_t classes = network.classes();
  const Size3 n = volume.size();
  const int64_t plane = n.x * n.y;
  // On its own grid the case is decided slab by slab; on another one the scores are what is resampled.
  const bool same_grid = n == volume.cropped.size;
  LabelMap labels;
  std::vector<float> scores;
  if (same_grid) {
    labels = LabelMap(volume.geometry);
  } else {
    scores.resize(static_cast<size_t>(checked_mul(n.voxels(), classes)));
  }
  const auto keep = [&](int64_t z_begin, int64_t, std::span<const float> values) {
    const auto first = static_cast<size_t>(z_begin * plane);
    if (same_grid) {
      return pick_labels(values, classes, volume.mask.data.data() + first, labels.data.data() + first);
    }
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t voxel = first + i / static_cast<size_t>(classes);
      const bool background = i % static_cast<size_t>(classes) == 0;
      scores[first * static_cast<size_t>(classes) + i] = volume.mask.data[voxel] != 0 ? values[i]
                                                         : background                 ? 1.0f
                                                                                      : 0.0f;
    }
  };

  const TapeScope no_gradients(context, nullptr);
  SegmentedCase result;
  if (settings.patch == Size3{}) {
    check<UsageError>(settings.mirror == std::array<bool, 3>{},
                      "mirror: found axes, expected none for a pass over the whole volume, or a patch too");
    run_whole(context, network, volume, info.modalities, settings, !same_grid, keep);
    result.tiles = 1;
  } else {
    PredictSettings turned = settings;
    turned.patch = imaging::from_ijk(info.layout, settings.patch);
    turned.mirror = imaging::from_ijk(info.layout, settings.mirror);
    const Size3 tile = turned.patch;
    const auto look_at = [&](const std::vector<float>& shown, std::vector<float>& probabilities) {
      const Tensor input = Tensor::from_host(
          context, shown, {1, tile.z, tile.y, tile.x, static_cast<int64_t>(info.modalities.size())});
      const Variable logits = network.forward(context, input, {.precision = settings.precision});
      logits.value().copy_to_host(context, probabilities.data(), probabilities.size() * sizeof(float));
      softmax_rows(probabilities, classes);
    };
    const TileCount count = slide_window(volume, info.modalities, classes, turned, look_at, keep);
    result.tiles = count.all;
    result.tiles_skipped = count.skipped;
  }
  const LabelMap restored = same_grid ? imaging::restore_labels(volume, labels)
                                      : imaging::restore_class_labels(volume, scores, classes);
  result.labels = imaging::from_layout(restored, prepared.layout, source.geometry);
  return result;
}

int64_t measure_segmenter_bytes(DeviceContext& context, const models::Segmenter& network, Size3 size,
                                DType precision) {
  Size3 probe;
  for (int axis = 0; axis < 3; ++axis) {
    probe[axis] = std::min<int64_t>(size[axis], 32);
  }
  const TapeScope no_gradients(context, nullptr);
  context.allocator().reset_peak();
  network.forward(context, Tensor::zeros(context, {1, probe.z, probe.y, probe.x, network.in_channels()}),
                  {.precision = precision});
  context.synchronize();
  const AllocationStatistics used = context.allocator().statistics();
  context.allocator().reset_peak();
  const auto lasting = static_cast<int64_t>(used.current_bytes);
  const auto passing = static_cast<double>(static_cast<int64_t>(used.peak_bytes) - lasting);
  return lasting + static_cast<int64_t>(passing * static_cast<double>(size.voxels()) /
                                        static_cast<double>(probe.voxels()));
}

MemoryPlan plan_segmenter_memory(Size3 original, Size3 prepared, const models::Segmenter& network,
                                 const PredictSettings& settings, int64_t network_bytes) {
  constexpr auto kFloat = static_cast<int64_t>(sizeof(float));
  const int64_t full = original.voxels();
  const int64_t small = prepared.voxels();
  const int64_t classes = network.classes();
  const bool whole = settings.patch == Size3{};
  MemoryPlan plan;
  plan.tiles =
      whole ? 1 : static_cast<int64_t>(imaging::tile_grid(prepared, settings.patch, settings.overlap).size());
  // As read, turned, and prepared; in a single pass once more as the network's input.
  plan.volumes_bytes = (2 * full + (whole ? 2 : 1) * small) * network.in_channels() * kFloat + full + small;
  plan.probabilities_bytes = original == prepared ? 0 : small * classes * kFloat;
  plan.blending_bytes = whole ? std::min(prepared.z, kSlabSlices) * prepared.x * prepared.y * classes * kFloat
                              : imaging::SlabBlender::bytes(prepared, settings.patch, classes);
  plan.network_bytes = network_bytes;
  plan.labels_bytes = 3 * full;
  return plan;
}

}  // namespace vesal::training
