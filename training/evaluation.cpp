// Scoring of label maps: pairing files, comparing, means, and the three ways to show the result.
#include "training/evaluation.hpp"

#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>

#include "base/atomic_file.hpp"
#include "imaging/nifti.hpp"
#include "training/interrupted.hpp"

namespace vesal::training {
namespace fs = std::filesystem;
using imaging::kRegionCount;
using imaging::kRegions;
using imaging::LabelMap;
using imaging::LabelScheme;
using imaging::MaskMetrics;
using imaging::Region;
using Json = nlohmann::ordered_json;

namespace {

// The name without .nii or .nii.gz; nothing for other files, hidden ones included.
std::optional<std::string> nifti_stem(const fs::path& path) {
  const std::string name = path.filename().string();
  for (const std::string_view ending : {".nii.gz", ".nii"}) {
    if (name.size() > ending.size() && name.ends_with(ending) && name.front() != '.') {
      return name.substr(0, name.size() - ending.size());
    }
  }
  return std::nullopt;
}

// For "CASE-seg", "CASE_seg" and "seg": what is before it; nothing for other stems.
std::optional<std::string> before_seg(const std::string& stem) {
  if (stem == "seg") {
    return std::string();
  }
  if (stem.ends_with("-seg") || stem.ends_with("_seg")) {
    return stem.substr(0, stem.size() - 4);
  }
  return std::nullopt;
}

void require_folder(const fs::path& folder) {
  std::error_code error;
  check<IoError>(fs::exists(folder, error), folder.string(),
                 ": found nothing, expected a folder of label maps");
  check<IoError>(fs::is_directory(folder, error), folder.string(),
                 ": found a file, expected a folder of label maps");
}

std::vector<fs::path> sorted_entries(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> entries;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    entries.push_back(it->path());
  }
  check<IoError>(!error, folder.string(), ": cannot be listed: ", error.message());
  std::sort(entries.begin(), entries.end());
  return entries;
}

void add_unique(std::map<std::string, fs::path>& files, const std::string& name, const fs::path& path) {
  const auto [it, inserted] = files.emplace(name, path);
  check<FormatError>(inserted, path.string(), ": found a second label map of case ", name, " beside ",
                     it->second.string(), ", expected one");
}

std::vector<NamedFile> to_list(const std::map<std::string, fs::path>& files) {
  std::vector<NamedFile> list;
  for (const auto& [name, path] : files) {
    list.push_back({name, path});
  }
  return list;
}

// A region's labels in a scheme, as nnU-Net writes them: "(1, 2, 3)", and a single one as "3".
std::string region_key(Region region, LabelScheme scheme) {
  const int et = scheme == LabelScheme::brats2021 ? 4 : 3;
  switch (region) {
    case Region::wt:
      return concat("(1, 2, ", et, ")");
    case Region::tc:
      return concat("(1, ", et, ")");
    case Region::et:
      return concat(et);
  }
  return {};
}

Json metrics_json(const MaskMetrics& m) {
  return Json{{"Dice", m.dice},
              {"IoU", m.iou},
              {"TP", m.tp},
              {"FP", m.fp},
              {"FN", m.fn},
              {"TN", m.tn},
              {"n_pred", m.prediction_voxels()},
              {"n_ref", m.reference_voxels()},
              {"HD95_mm", m.hd95_mm},
              {"volume_ref_mL", m.reference_ml},
              {"volume_pred_mL", m.prediction_ml},
              {"both_empty", m.both_empty},
              {"one_empty", m.one_empty}};
}

Json worst_json() {
  return Json{{"Dice", 0.0}, {"IoU", 0.0}, {"HD95_mm", imaging::kHd95OneEmpty}, {"failed", true}};
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) {
    return text;
  }
  std::string quoted = "\"";
  for (const char c : text) {
    quoted += c;
    if (c == '"') {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::string fixed(double value, int width, int digits) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%*.*f", width, digits, value);
  return buffer;
}

std::string pad(std::string text, size_t width) {
  if (text.size() < width) {
    text.append(width - text.size(), ' ');
  }
  return text;
}

RegionMean mean_over(const std::vector<CaseScore>& cases, Region region, bool with_failures) {
  RegionMean mean;
  int64_t n = 0;
  for (const CaseScore& score : cases) {
    if (score.failed() && !with_failures) {
      continue;
    }
    ++n;
    mean.dice += score.dice(region);
    mean.iou += score.iou(region);
    mean.hd95_mm += score.hd95_mm(region);
    if (!score.failed()) {
      const MaskMetrics& m = score.regions[static_cast<size_t>(region)];
      mean.both_empty += m.both_empty;
      mean.one_empty += m.one_empty;
    }
  }
  if (n > 0) {
    const double count = static_cast<double>(n);
    mean.dice /= count;
    mean.iou /= count;
    mean.hd95_mm /= count;
  }
  return mean;
}

size_t name_width(const std::vector<CaseScore>& cases) {
  size_t width = 4;
  for (const CaseScore& score : cases) {
    width = std::max(width, score.name.size());
  }
  return width;
}

}  // namespace

std::vector<NamedFile> find_label_files(const fs::path& folder) {
  require_folder(folder);
  std::map<std::string, fs::path> ending_in_seg;
  std::map<std::string, fs::path> plain;
  std::map<std::string, fs::path> in_folders;
  const std::string own_name = fs::weakly_canonical(folder).filename().string();
  for (const fs::path& entry : sorted_entries(folder)) {
    if (fs::is_directory(entry)) {
      for (const fs::path& file : sorted_entries(entry)) {
        const auto stem = nifti_stem(file);
        if (stem && before_seg(*stem)) {
          add_unique(in_folders, entry.filename().string(), file);
        }
      }
    } else if (const auto stem = nifti_stem(entry)) {
      if (const auto before = before_seg(*stem)) {
        add_unique(ending_in_seg, before->empty() ? own_name : *before, entry);
      } else {
        add_unique(plain, *stem, entry);
      }
    }
  }
  std::map<std::string, fs::path> files = ending_in_seg.empty() ? plain : ending_in_seg;
  for (const auto& [name, path] : in_folders) {
    add_unique(files, name, path);
  }
  check<FormatError>(!files.empty(), folder.string(),
                     ": found no label map, expected CASE/...-seg.nii.gz folders or CASE.nii.gz files");
  return to_list(files);
}

std::vector<NamedFile> find_prediction_files(const fs::path& folder) {
  require_folder(folder);
  std::map<std::string, fs::path> files;
  for (const fs::path& entry : sorted_entries(folder)) {
    const auto stem = nifti_stem(entry);
    if (stem && !fs::is_directory(entry) && !stem->ends_with("-probability")) {
      add_unique(files, *stem, entry);
    }
  }
  return to_list(files);
}

double CaseScore::dice(Region region) const {
  return failed() ? 0.0 : regions[static_cast<size_t>(region)].dice;
}
double CaseScore::iou(Region region) const {
  return failed() ? 0.0 : regions[static_cast<size_t>(region)].iou;
}
double CaseScore::hd95_mm(Region region) const {
  return failed() ? imaging::kHd95OneEmpty : regions[static_cast<size_t>(region)].hd95_mm;
}

int64_t Evaluation::failures() const {
  return std::count_if(cases.begin(), cases.end(), [](const CaseScore& score) { return score.failed(); });
}
RegionMean Evaluation::mean(Region region) const { return mean_over(cases, region, true); }
RegionMean Evaluation::mean_of_scored(Region region) const { return mean_over(cases, region, false); }

Evaluation evaluate(const fs::path& predictions, const fs::path& labels, const EvaluationSettings& settings) {
  Evaluation evaluation;
  evaluation.predictions = predictions;
  evaluation.labels = labels;
  evaluation.settings = settings;
  const std::vector<NamedFile> references = find_label_files(labels);
  std::map<std::string, fs::path> predicted;
  for (const NamedFile& file : find_prediction_files(predictions)) {
    predicted.emplace(file.name, file.path);
  }
  check<FormatError>(!predicted.empty(), predictions.string(),
                     ": found no label map, expected CASE.nii.gz files");
  for (const NamedFile& reference : references) {
    const auto it = predicted.find(reference.name);
    if (it == predicted.end() && settings.only_predicted) {
      ++evaluation.left_out;
      continue;
    }
    CaseScore score;
    score.name = reference.name;
    score.reference = reference.path;
    if (it == predicted.end()) {
      score.failure = concat((predictions / (reference.name + ".nii.gz")).string(),
                             ": found nothing, expected the prediction of case ", reference.name);
    } else {
      score.prediction = it->second;
      predicted.erase(it);
    }
    evaluation.cases.push_back(std::move(score));
  }
  for (const auto& entry : predicted) {
    evaluation.without_label.push_back(entry.first);
  }
  check<FormatError>(!evaluation.cases.empty(), predictions.string(), ": found no prediction of any of the ",
                     references.size(), " cases in ", labels.string(),
                     ", expected CASE.nii.gz files named like ", references.front().name);

  const int64_t total = static_cast<int64_t>(evaluation.cases.size());
  int64_t done = 0;
  for (CaseScore& score : evaluation.cases) {
    check<InterruptedError>(settings.stop == nullptr || !settings.stop->load(), "interrupted after ", done,
                            " of ", total, " cases; nothing was written");
    if (!score.failed()) {
      try {
        const imaging::NiftiImage reference = imaging::read_nifti(score.reference);
        const imaging::NiftiImage prediction = imaging::read_nifti(score.prediction);
        const std::string difference =
            imaging::geometry_difference(prediction.volume.geometry, reference.volume.geometry);
        check<FormatError>(difference.empty(), score.prediction.string(),
                           ": found another grid than that of ", score.reference.string(), ": ", difference);
        score.regions = imaging::compare_regions(
            imaging::labels_from_scheme(prediction.volume, settings.prediction_scheme, score.prediction),
            imaging::labels_from_scheme(reference.volume, settings.label_scheme, score.reference));
      } catch (const Error& error) {
        score.failure = error.what();
      }
    }
    ++done;
    if (settings.progress) {
      settings.progress(done, total, score.name);
    }
  }
  return evaluation;
}

std::string summary_json(const Evaluation& evaluation) {
  const LabelScheme scheme = evaluation.settings.label_scheme;
  Json per_case = Json::array();
  Json failures = Json::array();
  for (const CaseScore& score : evaluation.cases) {
    Json metrics;
    for (const Region region : kRegions) {
      metrics[region_key(region, scheme)] =
          score.failed() ? worst_json() : metrics_json(score.regions[static_cast<size_t>(region)]);
    }
    per_case.push_back({{"metrics", metrics},
                        {"prediction_file", score.prediction.string()},
                        {"reference_file", score.reference.string()}});
    if (score.failed()) {
      failures.push_back({{"case", score.name}, {"reason", score.failure}});
    }
  }
  // Counts are averaged over scored cases, as a failure has none; scores over all.
  const auto region_mean = [&](Region region) {
    const RegionMean mean = evaluation.mean(region);
    Json out{{"Dice", mean.dice}, {"IoU", mean.iou}, {"HD95_mm", mean.hd95_mm}};
    double sums[8] = {};
    double n = 0;
    for (const CaseScore& score : evaluation.cases) {
      if (!score.failed()) {
        const MaskMetrics& m = score.regions[static_cast<size_t>(region)];
        const double values[8] = {static_cast<double>(m.tp),
                                  static_cast<double>(m.fp),
                                  static_cast<double>(m.fn),
                                  static_cast<double>(m.tn),
                                  static_cast<double>(m.prediction_voxels()),
                                  static_cast<double>(m.reference_voxels()),
                                  m.reference_ml,
                                  m.prediction_ml};
        for (int i = 0; i < 8; ++i) {
          sums[i] += values[i];
        }
        n += 1;
      }
    }
    static constexpr const char* kNames[8] = {
        "TP", "FP", "FN", "TN", "n_pred", "n_ref", "volume_ref_mL", "volume_pred_mL"};
    for (int i = 0; i < 8; ++i) {
      out[kNames[i]] = n > 0 ? Json(sums[i] / n) : Json(nullptr);
    }
    out["both_empty"] = mean.both_empty;
    out["one_empty"] = mean.one_empty;
    return out;
  };
  Json mean;
  Json foreground;
  for (const Region region : kRegions) {
    const Json one = region_mean(region);
    mean[region_key(region, scheme)] = one;
    for (const auto& [key, value] : one.items()) {
      if (value.is_null()) {
        foreground[key] = nullptr;
      } else if (key != "both_empty" && key != "one_empty") {
        foreground[key] = (foreground.contains(key) ? foreground[key].get<double>() : 0.0) +
                          value.get<double>() / static_cast<double>(kRegionCount);
      }
    }
  }
  Json names;
  Json scored;
  for (const Region region : kRegions) {
    names[std::string(imaging::name_of(region))] = region_key(region, scheme);
    if (evaluation.failures() < static_cast<int64_t>(evaluation.cases.size())) {
      const RegionMean only = evaluation.mean_of_scored(region);
      scored[region_key(region, scheme)] = {
          {"Dice", only.dice}, {"IoU", only.iou}, {"HD95_mm", only.hd95_mm}};
    }
  }
  const Json summary{
      {"foreground_mean", foreground},
      {"mean", mean},
      {"metric_per_case", per_case},
      {"vesal",
       {{"regions", names},
        {"label_scheme", std::string(imaging::name_of(scheme))},
        {"prediction_scheme", std::string(imaging::name_of(evaluation.settings.prediction_scheme))},
        {"cases", evaluation.cases.size()},
        {"failures", failures},
        {"rule_for_failures",
         "a case that could not be scored, also one without a prediction, enters 'mean' with Dice 0, IoU 0 "
         "and HD95 "
         "373.13 mm; counts and volumes are means over scored cases; 'mean_of_scored' leaves failures out"},
        {"rule_for_empty_regions",
         "region empty in both: Dice 1, IoU 1, HD95 0; empty in one only: Dice 0, IoU 0, HD95 373.13 mm "
         "(BraTS); "
         "both_empty and one_empty count these cases"},
        {"hd95",
         "95th percentile, linearly interpolated, of the surface distances of both directions pooled, in mm"},
        {"mean_of_scored", scored},
        {"predictions_without_label", evaluation.without_label},
        {"labels_left_out", evaluation.left_out}}}};
  return summary.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string metrics_csv(const Evaluation& evaluation) {
  std::ostringstream out;
  out.precision(10);
  out << "case,region,dice,iou,hd95_mm,reference_ml,prediction_ml,tp,fp,fn,tn,both_empty,one_empty,failure\n";
  for (const CaseScore& score : evaluation.cases) {
    for (const Region region : kRegions) {
      out << csv_field(score.name) << ',' << imaging::name_of(region) << ',' << score.dice(region) << ','
          << score.iou(region) << ',' << score.hd95_mm(region) << ',';
      if (score.failed()) {
        out << ",,,,,,,,";
      } else {
        const MaskMetrics& m = score.regions[static_cast<size_t>(region)];
        out << m.reference_ml << ',' << m.prediction_ml << ',' << m.tp << ',' << m.fp << ',' << m.fn << ','
            << m.tn << ',' << m.both_empty << ',' << m.one_empty << ',';
      }
      out << csv_field(score.failure) << '\n';
    }
  }
  return out.str();
}

void print_table(std::ostream& out, const Evaluation& evaluation) {
  const size_t width = std::max<size_t>(name_width(evaluation.cases), 16);
  const auto blanks = [](size_t n) { return std::string(n, ' '); };
  out << pad("", width) << "  Dice" << blanks(17) << "IoU" << blanks(19) << "HD95 mm" << blanks(17)
      << "volume mL, reference/prediction\n";
  out << pad("case", width);
  for (int columns = 0; columns < 2; ++columns) {
    for (const Region region : kRegions) {
      out << "     " << imaging::name_of(region);
    }
    out << " ";
  }
  for (const Region region : kRegions) {
    out << "      " << imaging::name_of(region);
  }
  out << " ";
  for (const Region region : kRegions) {
    out << "            " << imaging::name_of(region);
  }
  out << '\n';
  bool both = false;
  bool one = false;
  for (const CaseScore& score : evaluation.cases) {
    out << pad(score.name, width);
    if (score.failed()) {
      out << "  failed (counts as Dice 0)\n";
      continue;
    }
    std::string volumes;
    for (const MaskMetrics& m : score.regions) {
      out << fixed(m.dice, 6, 3) << (m.both_empty ? '=' : m.one_empty ? '!' : ' ');
      both = both || m.both_empty;
      one = one || m.one_empty;
      volumes += fixed(m.reference_ml, 7, 1) + "/" + pad(fixed(m.prediction_ml, 0, 1), 6);
    }
    out << ' ';
    for (const MaskMetrics& m : score.regions) {
      out << fixed(m.iou, 6, 3) << (m.both_empty ? '=' : m.one_empty ? '!' : ' ');
    }
    out << ' ';
    for (const MaskMetrics& m : score.regions) {
      out << fixed(m.hd95_mm, 8, 2);
    }
    while (volumes.ends_with(' ')) {
      volumes.pop_back();
    }
    out << ' ' << volumes << '\n';
  }
  const auto mean_row = [&](const std::string& name, RegionMean (Evaluation::*mean)(Region) const) {
    out << pad(name, width);
    for (const Region region : kRegions) {
      out << fixed((evaluation.*mean)(region).dice, 6, 3) << ' ';
    }
    out << ' ';
    for (const Region region : kRegions) {
      out << fixed((evaluation.*mean)(region).iou, 6, 3) << ' ';
    }
    out << ' ';
    for (const Region region : kRegions) {
      out << fixed((evaluation.*mean)(region).hd95_mm, 8, 2);
    }
    out << '\n';
  };
  mean_row(concat("mean of ", evaluation.cases.size()), &Evaluation::mean);
  const int64_t failures = evaluation.failures();
  if (failures > 0 && failures < static_cast<int64_t>(evaluation.cases.size())) {
    mean_row(concat("  scored only, ", static_cast<int64_t>(evaluation.cases.size()) - failures),
             &Evaluation::mean_of_scored);
  }
  if (both) {
    out << "  =  region empty in both: Dice 1, IoU 1, HD95 0\n";
  }
  if (one) {
    out << "  !  region empty in one only: Dice 0, IoU 0, HD95 " << fixed(imaging::kHd95OneEmpty, 0, 2)
        << " mm\n";
  }
  for (const CaseScore& score : evaluation.cases) {
    if (score.failed()) {
      out << "  failed: " << score.failure << '\n';
    }
  }
  if (evaluation.left_out > 0) {
    out << "  " << evaluation.left_out << " labels without a prediction were left out, as asked\n";
  }
  if (!evaluation.without_label.empty()) {
    out << "  predictions without a label, not scored: " << evaluation.without_label.size() << " ("
        << evaluation.without_label.front() << (evaluation.without_label.size() > 1 ? ", ...)" : ")") << '\n';
  }
}

void print_comparison(std::ostream& out, const std::vector<Evaluation>& evaluations) {
  size_t width = 4;
  size_t label_width = 11;
  std::set<std::string> names;
  const auto folder_name = [](const Evaluation& evaluation) {
    const fs::path path = evaluation.predictions;
    return (path.has_filename() ? path.filename() : path.parent_path().filename()).string();
  };
  for (const Evaluation& evaluation : evaluations) {
    width = std::max(width, name_width(evaluation.cases));
    label_width = std::max(label_width, folder_name(evaluation).size());
    for (const CaseScore& score : evaluation.cases) {
      names.insert(score.name);
    }
  }
  out << pad("Dice by case", width) << "  " << pad("predictions", label_width) << "     WT     TC     ET\n";
  const auto row = [&](const std::string& first, const Evaluation& evaluation, auto dice) {
    out << pad(first, width) << "  " << pad(folder_name(evaluation), label_width);
    for (const Region region : kRegions) {
      out << fixed(dice(region), 7, 3);
    }
    out << '\n';
  };
  for (const std::string& name : names) {
    bool first = true;
    for (const Evaluation& evaluation : evaluations) {
      for (const CaseScore& score : evaluation.cases) {
        if (score.name == name) {
          row(first ? name : "", evaluation, [&](Region region) { return score.dice(region); });
          first = false;
        }
      }
    }
  }
  bool first = true;
  for (const Evaluation& evaluation : evaluations) {
    row(first ? concat("mean of ", evaluation.cases.size()) : "", evaluation,
        [&](Region region) { return evaluation.mean(region).dice; });
    first = false;
  }
  for (const Evaluation& evaluation : evaluations) {
    for (const CaseScore& score : evaluation.cases) {
      if (score.failed()) {
        out << "  failed: " << score.failure << '\n';
      }
    }
  }
}

void write_text_file(const fs::path& path, const std::string& text, bool overwrite) {
  std::error_code error;
  check<IoError>(overwrite || !fs::exists(path, error), path.string(),
                 ": found an existing file, expected none (--overwrite replaces it)");
  AtomicFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace vesal::training
