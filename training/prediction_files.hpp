// From the files of one case to the files a user gets: label map, overlay picture, statistics, probabilities.
#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "imaging/case.hpp"
#include "imaging/components.hpp"
#include "imaging/picture.hpp"
#include "models/fusion.hpp"
#include "training/predictor.hpp"
#include "training/segmentation.hpp"

namespace vesal::training {

// Where one case's results go. All are written completely or not at all.
struct PredictionPaths {
  std::filesystem::path label_map;
  std::filesystem::path picture;
  // CASE-wt-probability.nii.gz, -tc-, -et-; empty: not wanted.
  std::array<std::filesystem::path, imaging::kRegionCount> probabilities;
};

// LABEL_MAP.nii.gz -> LABEL_MAP.png beside it and, where wanted, LABEL_MAP-wt-probability.nii.gz and so on.
// Throws UsageError when the name does not end in .nii or .nii.gz.
PredictionPaths prediction_paths(const std::filesystem::path& label_map, bool probabilities);

struct PredictionOptions {
  PredictSettings tiles;
  imaging::Vector3 spacing_mm;                                    // the network's; 0 keeps the input's
  imaging::ModalityMask use = imaging::kAllModalities;            // modalities to use where the case has them
  imaging::LabelScheme scheme = imaging::LabelScheme::brats2023;  // of the label map that is written
};

struct StageSeconds {
  double read = 0;
  double prepare = 0;
  double network = 0;
  double restore = 0;
  double write = 0;

  double total() const { return read + prepare + network + restore + write; }
};

struct PredictedCase {
  std::string name;
  imaging::ModalityMask used{};
  imaging::Size3 prepared_size;
  int64_t tiles = 0;
  int64_t tiles_skipped = 0;
  StageSeconds seconds;
  std::array<imaging::RegionStatistics, imaging::kRegionCount> regions;  // of a network of regions
  std::vector<std::pair<std::string, double>> volumes_ml;  // what a user wants to see first, by name
  std::string statistics;  // one JSON object, see region_statistics_json and class_statistics_json
};

// Reads, prepares, predicts, restores and writes one case. On failure files that did not exist before are
// gone again. Throws what reading, predicting and writing throw.
PredictedCase predict_files(DeviceContext& context, const models::Fusion& network,
                            const imaging::CaseFiles& files, const PredictionOptions& options,
                            const PredictionPaths& paths);

// The same with a network of classes; everything but these settings comes from its file.
PredictedCase predict_files(DeviceContext& context, const LoadedSegmenter& segmenter,
                            const imaging::CaseFiles& files, const PredictSettings& settings,
                            const PredictionPaths& paths);

// Statistics of internal labels as JSON text: for WT, TC and ET voxels, volume in mm3 and mL, the bounding
// box in voxels of the input file (start and size, its own i j k order), the centroid in mm (RAS+), the
// number of connected parts and the largest one's volume, and mean and standard deviation of each modality's
// stored intensities.
std::string region_statistics_json(const imaging::LabelMap& labels, const imaging::Case& source);
// The same for every label of `names` but the background, under its name.
std::string class_statistics_json(const imaging::LabelMap& labels, const std::vector<std::string>& names,
                                  const imaging::Case& source);

// A box of the canonical grid in the voxels of the file, its own axes order and directions.
imaging::Box3 box_in_file(const imaging::Box3& canonical, const imaging::NiftiHeader& header);

}  // namespace vesal::training
