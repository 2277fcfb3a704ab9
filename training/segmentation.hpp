// Networks that give each voxel one of several classes (models/segmenter.hpp), from the weights file alone:
// it says what the classes are called, which modalities the network sees, in which axes, orientation and
// spacing, and how their intensities are scaled. Some see the whole volume at once, others tiles.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "imaging/layout.hpp"
#include "imaging/preprocess.hpp"
#include "models/segmenter.hpp"
#include "training/predictor.hpp"
#include "weights_tools/safetensors.hpp"

namespace vesal::training {

// What predict runs a file's network for.
enum class NetworkTask {
  regions,  // the fusion networks: tumour regions from up to four modalities (training/checkpoint.hpp)
  classes   // one class a voxel
};
// Of the weights that RUN|FILE means. Throws FormatError for weights that say of no network what they are,
// such as PyTorch's own, with the advice to convert them, and UsageError for networks that do not segment
// volumes.
NetworkTask task_of_weights(const std::filesystem::path& run_or_file);

// How volumes become what a network of classes was trained on.
struct SegmenterInfo {
  std::string preset;
  std::vector<std::string> labels;            // index: the label's value; 0 is the background
  std::vector<imaging::Modality> modalities;  // the network's channels
  imaging::LayoutRule layout;
  imaging::IntensityScaling intensity;
  bool crop_to_head = true;
  imaging::Vector3 spacing_mm;  // along i, j, k of the layout's orientation; 0: the input's own
  imaging::Size3 patch;         // likewise; 0 0 0: the whole volume at once
  std::string version;          // of the program that wrote the file
  std::string source_file;      // that it was converted from; empty where the file does not say
  std::string source_sha256;

  bool whole() const { return patch == imaging::Size3{}; }
  imaging::ModalityMask mask() const;
};
// Keys: vesal.version, vesal.modalities, and, with what their absence means, vesal.labels (a JSON list of
// names; "class 1", ...), vesal.orientation (RAS), vesal.axes (kji), vesal.intensity (zscore), vesal.crop
// ("head" or "none"; the head for zscore), vesal.spacing_mm (0 0 0), vesal.patch (a triple; whole),
// vesal.source_file, vesal.source_sha256. FormatError names `file` and the entry that is missing or bad, or
// does not fit the network.
SegmenterInfo segmenter_info_from(const weights::Metadata& metadata, const models::Segmenter& network,
                                  const std::string& file);

struct LoadedSegmenter {
  std::filesystem::path file;
  SegmenterInfo info;
  std::unique_ptr<models::Segmenter> network;
};
// Builds the network that a file describes and fills it.
LoadedSegmenter load_segmenter(DeviceContext& context, const std::filesystem::path& run_or_file);

// A case in the network's own axes and orientation, scaled; and how it lies against the input.
struct PreparedForSegmenter {
  imaging::Layout layout;
  imaging::PreparedCase volume;
};
PreparedForSegmenter prepare_for_segmenter(const imaging::Case& source, const SegmenterInfo& info);

struct SegmentedCase {
  imaging::LabelMap labels;  // on the case's own canonical grid
  int64_t tiles = 0;
  int64_t tiles_skipped = 0;
};
// Runs the network without gradients; the largest score wins, the first on a tie. settings.patch is in the
// order i, j, k as SegmenterInfo::patch is, 0 0 0: the whole volume in one pass, of which settings.progress
// hears after each part; settings.mirror likewise, and only for tiles (UsageError otherwise). Throws
// InterruptedError as `settings` ask for.
SegmentedCase segment_case(DeviceContext& context, const models::Segmenter& network,
                           const SegmenterInfo& info, const imaging::Case& source,
                           const PreparedForSegmenter& prepared, const PredictSettings& settings);

// Device bytes that the network needs for a volume or tile of this size; see measure_network_bytes.
int64_t measure_segmenter_bytes(DeviceContext& context, const models::Segmenter& network, imaging::Size3 size,
                                DType precision);
// The plan of one case; `prepared` is the grid at the network's spacing, whatever its layout.
MemoryPlan plan_segmenter_memory(imaging::Size3 original, imaging::Size3 prepared,
                                 const models::Segmenter& network, const PredictSettings& settings,
                                 int64_t network_bytes);

}  // namespace vesal::training
