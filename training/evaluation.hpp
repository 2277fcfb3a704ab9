// Scores folders of predicted label maps against reference label maps: Dice, IoU, HD95 and volumes for the
// regions WT, TC and ET of every case, means that hide nothing, summary.json in nnU-Net's form and
// metrics.csv.
//
// A reference without a prediction, or a pair that cannot be compared (unreadable, another grid, a value
// outside the label scheme), is a failure: it is named, and it enters every mean with the worst score (Dice
// 0, IoU 0, HD95 373.13 mm). Empty regions follow imaging/metrics.hpp.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "imaging/case.hpp"
#include "imaging/metrics.hpp"

namespace vesal::training {

struct NamedFile {
  std::string name;  // the case
  std::filesystem::path path;
};

// Reference label maps in a folder, sorted by case: `CASE/...seg.nii.gz` (a folder per case, the file's name
// ends in -seg or _seg, or is seg), `CASE-seg.nii.gz`, or `CASE.nii.gz`; also without .gz. Where files ending
// in seg lie in the folder itself, other files there are taken for images and left alone. Throws IoError for
// a missing folder, FormatError when there is none or when two claim one case.
std::vector<NamedFile> find_label_files(const std::filesystem::path& folder);

// Predictions in a folder, sorted by case: `CASE.nii.gz` or `CASE.nii`. May be empty. Throws IoError for a
// missing folder.
std::vector<NamedFile> find_prediction_files(const std::filesystem::path& folder);

struct EvaluationSettings {
  imaging::LabelScheme label_scheme = imaging::LabelScheme::brats2023;
  imaging::LabelScheme prediction_scheme = imaging::LabelScheme::brats2023;
  bool only_predicted = false;              // leave out references without a prediction; their number is kept
  const std::atomic<bool>* stop = nullptr;  // looked at before each case; true: InterruptedError
  std::function<void(int64_t done, int64_t total, const std::string& name)> progress;
};

struct CaseScore {
  std::string name;
  std::filesystem::path reference;
  std::filesystem::path prediction;  // empty: missing
  std::string failure;               // one line; empty: the case was scored
  std::array<imaging::MaskMetrics, imaging::kRegionCount> regions{};

  bool failed() const { return !failure.empty(); }
  // The score that counts: the worst one for a failure.
  double dice(imaging::Region region) const;
  double iou(imaging::Region region) const;
  double hd95_mm(imaging::Region region) const;
};

struct RegionMean {
  double dice = 0;
  double iou = 0;
  double hd95_mm = 0;
  int64_t both_empty = 0;  // cases to which a rule for empty regions applied
  int64_t one_empty = 0;
};

struct Evaluation {
  std::filesystem::path predictions;
  std::filesystem::path labels;
  EvaluationSettings settings;
  std::vector<CaseScore> cases;            // sorted by name
  std::vector<std::string> without_label;  // predictions that no reference asked for
  int64_t left_out = 0;                    // references without a prediction, where only_predicted

  int64_t failures() const;
  // Over all cases, failures included.
  RegionMean mean(imaging::Region region) const;
  // Over the cases that could be scored; all 0 without one.
  RegionMean mean_of_scored(imaging::Region region) const;
};

Evaluation evaluate(const std::filesystem::path& predictions, const std::filesystem::path& labels,
                    const EvaluationSettings& settings);

// nnU-Net's form (metric_per_case, mean, foreground_mean; regions keyed by their labels in the reference's
// scheme), with HD95 and volumes beside its metrics and the rules under "vesal".
std::string summary_json(const Evaluation& evaluation);
// One line for each case and region.
std::string metrics_csv(const Evaluation& evaluation);
// Cases as rows, the regions' Dice and HD95 and volumes as columns, means and failures below.
void print_table(std::ostream& out, const Evaluation& evaluation);
// Dice of the same cases in several folders (say, one for each set of modalities): one block of rows for each
// case.
void print_comparison(std::ostream& out, const std::vector<Evaluation>& evaluations);

// Writes a small text file completely or not at all. Throws IoError when it exists and `overwrite` is not
// set.
void write_text_file(const std::filesystem::path& path, const std::string& text, bool overwrite);

}  // namespace vesal::training
