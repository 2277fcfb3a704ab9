// One case from files to files.
#include "training/prediction_files.hpp"

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "imaging/nifti.hpp"

namespace vesal::training {
namespace fs = std::filesystem;
using imaging::kModalities;
using imaging::kRegionCount;
using imaging::kRegions;
using imaging::LabelMap;
using Json = nlohmann::ordered_json;

namespace {

// Seconds since the last lap.
class StopWatch {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Removes the files it was told of unless all went well; those that were there before are not touched.
class NewFiles {
 public:
  ~NewFiles() {
    std::error_code ignored;
    for (const fs::path& path : paths_) {
      fs::remove(path, ignored);
    }
  }
  void before_writing(const fs::path& path) {
    std::error_code ignored;
    if (!fs::exists(path, ignored)) {
      paths_.push_back(path);
    }
  }
  void keep() { paths_.clear(); }

 private:
  std::vector<fs::path> paths_;
};

// The modality on which a tumour shows best.
const imaging::Image& background_image(const imaging::Case& source, std::string& name) {
  for (const imaging::Modality modality :
       {imaging::Modality::t2f, imaging::Modality::t1c, imaging::Modality::t2w, imaging::Modality::t1n}) {
    if (source.present[static_cast<size_t>(modality)]) {
      name = imaging::name_of(modality);
      return source.images[static_cast<size_t>(modality)];
    }
  }
  throw UsageError(concat(source.name, ": found no modality"));
}

double rounded(double value, double steps) { return std::round(value * steps) / steps; }

}  // namespace

imaging::Box3 box_in_file(const imaging::Box3& canonical, const imaging::NiftiHeader& header) {
  imaging::Box3 box;
  for (int stored = 0; stored < 3; ++stored) {
    const int axis = header.axis[static_cast<size_t>(stored)];
    box.size[stored] = canonical.size[axis];
    box.start[stored] = header.flipped[static_cast<size_t>(stored)]
                            ? header.stored_size[stored] - canonical.start[axis] - canonical.size[axis]
                            : canonical.start[axis];
  }
  return box;
}

std::string region_statistics_json(const LabelMap& labels, const imaging::Case& source) {
  Json out;
  for (const imaging::Region region : kRegions) {
    const LabelMap mask = imaging::region_mask(labels, region);
    const imaging::RegionStatistics statistics = imaging::region_statistics(mask);
    Json entry{{"voxels", statistics.voxels},
               {"volume_mm3", rounded(statistics.volume_ml * 1000.0, 1e3)},
               {"volume_mL", rounded(statistics.volume_ml, 1e6)},
               {"components", statistics.components},
               {"largest_component_mL", rounded(statistics.largest_component_ml, 1e6)}};
    if (statistics.voxels > 0) {
      const imaging::Box3 box = box_in_file(statistics.box, source.header);
      entry["bounding_box_voxels"] = {{"start", {box.start.x, box.start.y, box.start.z}},
                                      {"size", {box.size.x, box.size.y, box.size.z}}};
      entry["centroid_mm"] = {rounded(statistics.centroid_mm.x, 1e3), rounded(statistics.centroid_mm.y, 1e3),
                              rounded(statistics.centroid_mm.z, 1e3)};
      Json intensity;
      for (const imaging::Modality modality : kModalities) {
        if (!source.present[static_cast<size_t>(modality)]) {
          continue;
        }
        const std::vector<float>& image = source.images[static_cast<size_t>(modality)].data;
        double sum = 0;
        for (size_t i = 0; i < image.size(); ++i) {
          sum += mask.data[i] != 0 ? static_cast<double>(image[i]) : 0.0;
        }
        const double mean = sum / static_cast<double>(statistics.voxels);
        double squares = 0;
        for (size_t i = 0; i < image.size(); ++i) {
          const double difference = static_cast<double>(image[i]) - mean;
          squares += mask.data[i] != 0 ? difference * difference : 0.0;
        }
        intensity[std::string(imaging::name_of(modality))] = {
            {"mean", mean}, {"std", std::sqrt(squares / static_cast<double>(statistics.voxels))}};
      }
      entry["intensity"] = intensity;
    } else {
      entry["bounding_box_voxels"] = nullptr;
      entry["centroid_mm"] = nullptr;
      entry["intensity"] = nullptr;
    }
    out[std::string(imaging::name_of(region))] = entry;
  }
  return out.dump();
}

PredictionPaths prediction_paths(const fs::path& label_map, bool probabilities) {
  const std::string text = label_map.string();
  size_t ending = 0;
  for (const char* const known : {".nii.gz", ".nii"}) {
    const std::string suffix = known;
    if (ending == 0 && label_map.filename().string().size() > suffix.size() && text.ends_with(suffix)) {
      ending = suffix.size();
    }
  }
  check<UsageError>(ending > 0, text,
                    ": name of the label map: found no ending .nii.gz or .nii, expected one");
  const std::string stem = text.substr(0, text.size() - ending);
  PredictionPaths paths{.label_map = label_map, .picture = stem + ".png", .probabilities = {}};
  if (probabilities) {
    paths.probabilities = {stem + "-wt-probability.nii.gz", stem + "-tc-probability.nii.gz",
                           stem + "-et-probability.nii.gz"};
  }
  return paths;
}

PredictedCase predict_files(DeviceContext& context, const models::Fusion& network,
                            const imaging::CaseFiles& files, const PredictionOptions& options,
                            const PredictionPaths& paths) {
  PredictedCase result;
  result.name = files.name;
  StopWatch watch;
  const imaging::Case source =
      imaging::load_case(files, {.use = options.use, .read_labels = false, .scheme = options.scheme});
  result.used = source.present;
  result.seconds.read = watch.lap();

  const imaging::PreparedCase prepared = imaging::prepare_case(source, {.spacing_mm = options.spacing_mm});
  result.prepared_size = prepared.size();
  result.seconds.prepare = watch.lap();

  const RegionProbabilities probabilities = predict_case(context, network, prepared, options.tiles);
  result.tiles = probabilities.tiles;
  result.tiles_skipped = probabilities.tiles_skipped;
  result.seconds.network = watch.lap();

  const LabelMap labels = imaging::restore_region_labels(prepared, probabilities.values);
  for (const imaging::Region region : kRegions) {
    result.regions[static_cast<size_t>(region)] =
        imaging::region_statistics(imaging::region_mask(labels, region));
  }
  result.statistics = region_statistics_json(labels, source);
  result.seconds.restore = watch.lap();

  NewFiles written;
  written.before_writing(paths.label_map);
  imaging::write_like(paths.label_map, imaging::labels_to_scheme(labels, options.scheme), source.header);
  for (int region = 0; region < kRegionCount; ++region) {
    const fs::path& path = paths.probabilities[static_cast<size_t>(region)];
    if (!path.empty()) {
      written.before_writing(path);
      imaging::write_like(path,
                          imaging::restore_probability(prepared, probabilities.values, kRegionCount, region),
                          source.header);
    }
  }
  std::string background;
  const imaging::Image& image = background_image(source, background);
  imaging::MontageOptions montage;
  montage.title = files.name;
  montage.subtitle = concat("on ", background, ", from ", imaging::to_string(source.present));
  const imaging::Canvas canvas = imaging::case_montage(image, nullptr, &labels, montage);
  written.before_writing(paths.picture);
  imaging::write_png(paths.picture, canvas);
  written.keep();
  result.seconds.write = watch.lap();
  return result;
}

}  // namespace vesal::training
